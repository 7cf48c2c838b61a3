// Pictures of the console for the docs. `node screenshots.cjs URL FOLDER`, with the token in MODELD_TOKEN.
"use strict";

const { join } = require("node:path");
const { until, withPage } = require("./browser.cjs");

async function ask(page, text, answers) {
  await page.fill("#question", text);
  await page.press("#question", "Enter");
  await until(page, `answer ${answers}`, (count) => document.querySelectorAll(".assistant > .slip").length === count && [...document.querySelectorAll(".assistant > .slip")].at(-1).textContent, answers);
}

async function main(url, folder, token) {
  for (const [name, options] of [
    ["console-light", { colorScheme: "light", viewport: { width: 1200, height: 1080 } }],
    ["console-dark", { colorScheme: "dark", viewport: { width: 1200, height: 1080 } }],
    ["console-phone", { colorScheme: "light", viewport: { width: 390, height: 1500 } }],
  ]) {
    await withPage({ url, token, reducedMotion: "reduce", ...options }, async (page) => {
      await page.selectOption("#chat-model", "tiny");
      await page.click("#tooling summary");
      await page.click("#example");
      await page.click("#tooling summary");
      await page.selectOption("#think", "high");
      await ask(page, "What is the weather in Oslo?", 1);
      await page.locator(".call textarea").fill('{"temp": 21, "sky": "sunny"}');
      await page.press(".call textarea", "Enter");
      await until(page, "the answer", () => [...document.querySelectorAll(".assistant > .slip")].at(-1).textContent.includes("reused") && document.querySelectorAll(".assistant").length === 2);
      await page.waitForTimeout(4000);
      await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); $("log").scrollTop = 0; });
      await page.screenshot({ path: join(folder, `${name}.png`) });
    });
  }
}

main(process.argv[2], process.argv[3], process.env.MODELD_TOKEN).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
