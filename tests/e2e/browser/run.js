// Serves the page on an origin of its own, opens it in a real browser, and prints what it met as one JSON object.
// node run.js BROWSER PORT URL-OF-THE-MESH KEY

import { createReadStream, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [executablePath, port, base, key] = process.argv.slice(2);
const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];

const pages = createServer((request, response) => {
  if (request.url.startsWith("/page.bundle.js")) {
    response.setHeader("content-type", "text/javascript");
    createReadStream("site/page.bundle.js").pipe(response);
  } else {
    response.setHeader("content-type", "text/html");
    response.end('<!doctype html><title>a page</title><script src="/page.bundle.js"></script>');
  }
});
await new Promise((listening) => pages.listen(Number(port), "127.0.0.1", listening));
const profile = mkdtempSync(join(tmpdir(), "penstock-browser-"));
const flags = [...QUIET, "--disable-component-update", "--disable-sync"];
const browser = await chromium.launchPersistentContext(profile, { executablePath, args: flags, timeout: 60_000 });
try {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${port}/?${new URLSearchParams({ base, key })}`);
  await page.waitForFunction(() => window.result !== undefined, null, { timeout: 60_000 });
  console.log(JSON.stringify(await page.evaluate(() => window.result)));
} finally {
  await browser.close();
  pages.close();
  rmSync(profile, { recursive: true, force: true });
}
