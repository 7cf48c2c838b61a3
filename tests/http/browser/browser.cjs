// A page of the console in Chromium, and the little that all scenarios need.
"use strict";

const { mkdtempSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { chromium } = require("playwright-core");

const ARGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

/** Open the console at a new profile. Fails when the page logs an error, breaks its policy, or asks anybody else. */
async function withPage({ url, token, bare = false, ...options }, work) {
  const profile = mkdtempSync(join(tmpdir(), "modeld-console-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: "/usr/bin/chromium", args: ARGS, chromiumSandbox: false, viewport: { width: 1280, height: 900 }, ...options,
  });
  try {
    const wrong = [];
    const page = context.pages()[0] || (await context.newPage());
    page.setDefaultTimeout(30_000);
    page.on("pageerror", (error) => wrong.push(`error in the page: ${error}`));
    page.on("console", (line) => line.type() === "error" && !/status of 40\d/.test(line.text()) && wrong.push(line.text()));
    page.on("request", (request) => {
      const asked = request.url();
      if (!asked.startsWith(`${url}/`) && !asked.startsWith("data:")) wrong.push(`the page asked ${asked}`);
      if (asked.includes(token)) wrong.push("the token was in an address");
    });
    await page.goto(bare ? `${url}/` : `${url}/#token=${token}`);
    await work(page);
    if (wrong.length) throw new Error(wrong.join("\n"));
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

function check(so, what) {
  if (!so) throw new Error(what);
}

/** Wait until `so` holds in the page. */
async function until(page, what, so, argument) {
  try {
    await page.waitForFunction(so, argument, { timeout: 30_000 });
  } catch {
    throw new Error(`not seen: ${what}\n${await page.locator("body").innerText()}`);
  }
}

const text = (page, selector) => page.locator(selector).innerText();

module.exports = { check, text, until, withPage };
