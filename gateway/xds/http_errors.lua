-- Gives HTTP clients the status and the body they expect of an error. Stands before the transcoder, so that on the way out it
-- sees what the transcoder made: plain HTTP. Native gRPC and gRPC-Web pass through with nothing but the inner header removed.
--
--   x-penstock-http-status: 404   the handler wrote the whole body itself; only the status is missing
--   {"code":5,"message":...}      the transcoder's google.rpc.Status; it becomes {"error":{"type":...,"code":...,"message":...}}
--                                 as OpenAI's clients read it, and below /v2 {"error":"..."} as Triton's do

local INNER = "x-penstock-http-status"
local OWN = "penstock.http_errors"

local OF_GRPC = { "grpc-status", "grpc-message", "grpc-accept-encoding", "grpc-encoding", "grpc-status-details-bin" }

local TYPES = {
  ["401"] = "authentication_error",
  ["403"] = "permission_error",
  ["429"] = "rate_limit_error",
}

local function error_type(status)
  return TYPES[status] or (string.sub(status, 1, 1) == "4" and "invalid_request_error" or "server_error")
end

local function after_seconds(body)
  local seconds, fraction = string.match(body, '"retry_delay":"(%d+)([^"]*)s"')
  if seconds == nil then
    return nil
  end
  return tostring(tonumber(seconds) + (string.match(fraction, "[1-9]") and 1 or 0))
end

-- The message's own JSON string, quotes included.
local function message_of(rest)
  local start = string.match(rest, '^,"message":"()')
  if start == nil then
    return '""'
  end
  local at = start
  while at <= string.len(rest) do
    local letter = string.sub(rest, at, at)
    if letter == "\\" then
      at = at + 1
    elseif letter == '"' then
      return string.sub(rest, start - 1, at)
    end
    at = at + 1
  end
  return '""'
end

local function reshape(headers, buffer, below_v2)
  local body = buffer:length() > 0 and buffer:getBytes(0, buffer:length()) or ""
  local rest = string.match(body, '^{"code":%d+(.*})$')
  if rest == nil then
    return
  end
  local reason = string.match(body, '"reason":"([A-Z0-9_]+)"')
  local code = reason and '"' .. string.lower(reason) .. '"' or "null"
  if below_v2 then
    buffer:setBytes('{"error":' .. message_of(rest) .. "}")
  else
    buffer:setBytes('{"error":{"type":"' .. error_type(headers:get(":status")) .. '","param":null,"code":' .. code .. rest .. "}")
  end
  headers:replace("content-length", tostring(buffer:length()))
  local seconds = after_seconds(body)
  if seconds ~= nil and headers:get("retry-after") == nil then
    headers:add("retry-after", seconds)
  end
end

function envoy_on_request(handle)
  if string.sub(handle:headers():get(":path") or "", 1, 4) == "/v2/" then
    handle:streamInfo():dynamicMetadata():set(OWN, "below_v2", true)
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(INNER)
  if status ~= nil then
    headers:remove(INNER)
  end
  local content_type = headers:get("content-type") or ""
  if string.sub(content_type, 1, 16) == "application/grpc" then
    return
  end
  for _, name in ipairs(OF_GRPC) do
    headers:remove(name)
  end
  if status ~= nil then
    if string.match(status, "^[45]%d%d$") then
      headers:replace(":status", status)
    end
  elseif string.match(headers:get(":status"), "^[45]") and content_type == "application/json" then
    -- Waiting for the body ends the life of `headers`.
    local buffer = handle:body(true)
    local own = handle:streamInfo():dynamicMetadata():get(OWN)
    reshape(handle:headers(), buffer, own ~= nil and own["below_v2"])
  end
end
