-- Gives HTTP clients the status and the body they expect of an error. Stands before the transcoder, so that on the way out it
-- sees what the transcoder made: plain HTTP. Native gRPC and gRPC-Web pass through with nothing but the inner header removed.
--
--   x-penstock-http-status: 404   the handler wrote the whole body itself; only the status is missing
--   grpc-status other than 0      the transcoder wrote google.rpc.Status as JSON; it becomes {"error": {...}}

local INNER = "x-penstock-http-status"

local KINDS = {
  ["401"] = "authentication_error",
  ["403"] = "permission_error",
  ["404"] = "invalid_request_error",
  ["429"] = "rate_limit_error",
}

local function kind_of(status)
  return KINDS[status] or (string.sub(status, 1, 1) == "4" and "invalid_request_error" or "server_error")
end

local function retry_after(body)
  local seconds, rest = string.match(body, '"retryDelay":"(%d+)([^"]*)s"')
  if seconds == nil then
    return nil
  end
  return tostring(tonumber(seconds) + (string.match(rest, "[1-9]") and 1 or 0))
end

local function rewrite(handle, headers)
  local buffer = handle:body(true)
  local length = buffer:length()
  local body = length > 0 and buffer:getBytes(0, length) or ""
  local kind = kind_of(headers:get(":status"))
  local reason = string.match(body, '"reason":"([A-Z0-9_]+)"')
  local opening = '{"error":{"type":"' .. kind .. '","param":null,"code":' .. (reason and '"' .. string.lower(reason) .. '"' or "null")
  local rest = string.match(body, '^{"code":%d+(,.*)$') or string.match(body, '^{"code":%d+(})$')
  if rest == nil then
    return
  end
  if not string.find(rest, '"message":', 1, true) then
    rest = ',"message":"no details were given"' .. rest
  end
  buffer:setBytes(opening .. rest .. "}")
  headers:replace("content-length", tostring(buffer:length()))
  headers:replace("content-type", "application/json")
  local seconds = retry_after(body)
  if seconds ~= nil and headers:get("retry-after") == nil then
    headers:add("retry-after", seconds)
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  local status = headers:get(INNER)
  if status ~= nil then
    headers:remove(INNER)
  end
  if string.sub(content_type, 1, 16) == "application/grpc" then
    return
  end
  if status ~= nil then
    if string.match(status, "^[45]%d%d$") then
      headers:replace(":status", status)
    end
    return
  end
  local code = headers:get("grpc-status")
  if code ~= nil and code ~= "0" then
    rewrite(handle, headers)
  end
end
