// What people do with the console. `node scenarios.cjs NAME URL`, with the token in MODELD_TOKEN.
"use strict";

const { check, text, until, withPage } = require("./browser.cjs");

const scenarios = {
  /** Load, a chat with a tool call, its receipt, unload. */
  async everything(page) {
    await page.selectOption("#model", "tiny");
    await page.fill("#context", "2048");
    await page.click("#load");
    await until(page, "tiny is resident", () => document.querySelector("#headline").textContent === "tiny");
    await until(page, "its memory", () => document.querySelectorAll("#bars .bar i.weights").length === 1);
    check((await text(page, "#about")).includes("2,048 tokens of context"), await text(page, "#about"));

    await page.selectOption("#chat-model", "tiny");
    await page.selectOption("#think", "off");
    await page.click("#tooling summary");
    await page.click("#example");
    await page.fill("#question", "What is the weather in Oslo?");
    await page.press("#question", "Enter");
    await page.locator(".call textarea").waitFor();
    check((await text(page, ".call b")) === "get_weather", "another tool was called");
    check((await text(page, ".call pre")).includes("Oslo"), await text(page, ".call pre"));
    await page.fill(".call textarea", '{"temp": 21, "sky": "sunny"}');
    await page.click(".call + .line button");
    await until(page, "the answer", () => document.querySelector("#log").textContent.includes("21 degrees and sunny in Oslo"));

    await until(page, "the receipt of the answer", () => document.querySelectorAll(".assistant > .slip")[1]?.textContent.includes("reused"));
    const [first, second] = await page.locator(".assistant > .slip").allInnerTexts();
    check(/^\d+ in: 0 reused, \d+ computed/.test(first), first);
    check(Number(/: ([\d,]+) reused/.exec(second)[1].replace(",", "")) >= 90, second);
    await until(page, "it among the receipts", () => document.querySelector("#slips li b")?.textContent === "this chat");
    await until(page, "its tape", () => document.querySelectorAll("#tapes .bar i.hot").length === 1);
    await page.click("#tapes details summary");
    await until(page, "its messages", () => document.querySelector("#tapes .more").textContent.includes("assistant"));

    await page.click("#unload");
    await until(page, "it is gone", () => document.querySelector("#headline").textContent === "no model is resident");
    check(await page.locator("#unload").isDisabled(), "there is nothing to unload");
    await until(page, "its tape as not known", () => document.querySelectorAll("#tapes .bar i.unknown").length === 1);
  },

  /** A break is told with its cause. */
  async breaks(page) {
    await page.selectOption("#chat-model", "tiny");
    await page.fill("#question", "Count to 9.");
    await page.press("#question", "Enter");
    await until(page, "the first answer", () => /reused/.test(document.querySelector(".assistant > .slip")?.textContent));
    await page.evaluate(() => { chat.messages[0].content = "Count to 8."; });
    await page.fill("#question", "Count to 5.");
    await page.press("#question", "Enter");
    await until(page, "the cause", () => /message changed in message 0 at character 9/.test(document.querySelector("#slips .cause")?.textContent));
  },

  /** What does not fit is refused with the numbers, and one of the alternatives is a click away. */
  async refused(page) {
    await page.selectOption("#model", "tiny");
    await page.fill("#context", "900000");
    await page.click("#load");
    await until(page, "why", () => /longer than the 8192 tokens/.test(document.querySelector("#planned .wrong")?.textContent));
    await until(page, "the arithmetic", () => document.querySelectorAll("#planned tr.sum").length === 2);
    check((await text(page, "#planned .line button >> nth=-1")) === "context 8192 KV q8_0", await text(page, "#planned .line"));
    await page.click("#planned .line button");
    check((await page.inputValue("#context")) === "8192", await page.inputValue("#context"));
    await page.click("#load");
    await until(page, "it fits now", () => document.querySelector("#planned").textContent === "tiny is resident.");
    await page.click("#unload");
    await until(page, "it is gone", () => document.querySelector("#headline").textContent === "no model is resident");
  },

  /** What is offered for KV is what a model of that type can have. */
  async kvTypes(page) {
    const offered = () => page.locator("#kv option").allInnerTexts().then((names) => names.join(" "));
    await page.selectOption("#model", "tiny");
    check((await offered()) === "f16 q8_0 q4_0", await offered());
    await page.selectOption("#kv", "q8_0");
    await page.selectOption("#model", "tiny-ov");
    check((await offered()) === "f16 f32", await offered());
    check((await page.inputValue("#kv")) === "f16", await page.inputValue("#kv"));
    await page.selectOption("#kv", "f32");
    await page.click("#plan");
    await until(page, "its plan", () => document.querySelector("#planned").textContent.startsWith("It fits"));
    await page.selectOption("#model", "tiny");
    check((await page.inputValue("#kv")) === "f16", await page.inputValue("#kv"));
  },

  /** A model that another program asks for replaces the one that was loaded here, and the page says so. */
  async replaced(page, url, token) {
    await page.selectOption("#model", "tiny");
    await page.click("#load");
    await until(page, "tiny is resident", () => document.querySelector("#planned").textContent === "tiny is resident.");
    await page.fill("#question", "Count to 3.");
    await page.press("#question", "Enter");
    await until(page, "the answer", () => /reused/.test(document.querySelector(".assistant > .slip")?.textContent));
    await until(page, "its session", () => document.querySelector("#tapes li b")?.textContent === "this chat");
    const body = JSON.stringify({ model: "fake", messages: [{ role: "user", content: "Hello" }], max_tokens: 3 });
    const answer = await fetch(`${url}/v1/chat/completions`, { method: "POST", body, headers: { authorization: `Bearer ${token}`, "content-type": "application/json" } });
    check(answer.ok, await answer.text());
    await until(page, "the other model", () => document.querySelector("#headline").textContent === "fake");
    check((await text(page, "#planned")) === "", await text(page, "#planned"));
    await until(page, "whose session it was", () => [...document.querySelectorAll("#tapes li b")].some((one) => one.textContent === "this chat (tiny)"));
    await page.click("#unload");
    await until(page, "it is gone", () => document.querySelector("#headline").textContent === "no model is resident");
  },

  /** A node that is gone is not shown as if it were there, and a question that it did not answer is not lost. */
  async gone(page) {
    await until(page, "the node", () => document.querySelector("#headline").textContent !== "not connected");
    await page.selectOption("#chat-model", "tiny");
    await page.evaluate(() => { window.fetch = () => Promise.reject(new TypeError("Failed to fetch")); });
    await page.fill("#question", "Count to 4.");
    await page.press("#question", "Enter");
    await until(page, "that it is gone", () => document.querySelector("#headline").textContent === "no answer from the node");
    await until(page, "what is done about it", () => document.querySelector("#trouble").textContent.includes("Trying again"));
    await until(page, "the question", () => document.querySelector("#question").value === "Count to 4.");
    check((await text(page, ".assistant .wrong")) === "The node does not answer.", await text(page, ".assistant .wrong"));
    check((await page.evaluate(() => chat.messages.length)) === 0, "an unanswered question stays in the conversation");
  },

  /** The page is everybody's, the node is not. */
  async stranger(page, url, token) {
    await page.locator("#token").waitFor();
    check(!(await page.locator("#board").isVisible()), "the board is shown without a token");
    await page.fill("#token", "a-wrong-token-of-some-length");
    await page.press("#token", "Enter");
    await until(page, "the refusal", () => document.querySelector("#trouble").textContent.includes("does not take this token"));
    await page.fill("#token", token);
    await page.press("#token", "Enter");
    await page.locator("#board").waitFor();
    await page.reload();
    await page.locator("#board").waitFor();
    await page.goto(`${url}/#token=${token}`);
    await until(page, "the token leave the address", () => !location.hash);
    await page.locator("#board").waitFor();
    check(!page.url().includes("#"), "the token stays in the address");
    check(!(await page.content()).includes(token), "the token is in the page");
    await page.click("#leave");
    await page.reload();
    await page.locator("#token").waitFor();
  },

  /** All by keyboard: each control is reached and shows its focus; Escape stops an answer. */
  async keyboard(page) {
    const wanted = ["token-forget", "fresh", "chat-model", "think", "tooling", "log", "question", "send", "model", "context", "kv", "load", "plan"];
    const seen = [];
    await page.locator("#question").waitFor();
    for (let step = 0; step < 40; step++) {
      await page.keyboard.press("Tab");
      const at = await page.evaluate(() => {
        const one = document.activeElement;
        const style = getComputedStyle(one);
        return [one.id || one.parentElement?.id, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
      });
      if (at[0] && !seen.includes(at[0])) seen.push(at[0]);
      check(at[1] || !wanted.includes(at[0]), `the focus does not show on ${at[0]}`);
    }
    for (const id of wanted.slice(1)) check(seen.includes(id), `${id} is not reached: ${seen}`);
    check(seen.indexOf("chat-model") < seen.indexOf("question") && seen.indexOf("question") < seen.indexOf("send"), `${seen}`);
    for (const control of await page.locator("input, select, textarea, button").all()) {
      const name = await control.evaluate((one) => one.ariaLabel || one.labels?.[0]?.textContent || one.textContent);
      check(name.trim(), `a control has no name: ${await control.evaluate((one) => one.outerHTML)}`);
    }
    await page.selectOption("#chat-model", "tiny");
    await page.focus("#question");
    await page.keyboard.type("Count to 60.");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.press("Backspace");
    await page.keyboard.press("Enter");
    await page.locator("#stop").waitFor();
    await page.keyboard.press("Escape");
    await until(page, "it has stopped", () => document.querySelector("#stop").hidden && !document.querySelector("#send").disabled);
    await page.keyboard.type("Hello!");
    await page.keyboard.press("Enter");
    await until(page, "another answer", () => document.querySelectorAll(".assistant").length === 2 && !chat.running);
  },

  /** Thinking folds away when the answer begins, and what a model writes is text. */
  async text(page) {
    await page.selectOption("#chat-model", "tiny");
    await page.selectOption("#think", "high");
    await page.fill("#question", "Count to 5.");
    await page.press("#question", "Enter");
    await until(page, "the answer", () => /\d+ reused/.test(document.querySelector(".assistant > .slip")?.textContent));
    check(!(await page.locator(".assistant details").evaluate((one) => one.open)), "the thinking is not folded away");
    await page.click(".assistant details summary");
    check((await text(page, ".thought")).length > 5, "there is no thinking");
    const markup = "<img src=x onerror=alert(1)><b>bold</b>";
    await page.fill("#question", markup);
    await page.press("#question", "Enter");
    check((await text(page, ".user >> nth=1")) === markup, "markup was read");
    await page.click("#fresh");
    check((await page.locator("#log").innerHTML()) === "", "the old chat is still there");
  },

  /** A phone shows all of it, and nothing is wider than its screen. */
  async phone(page) {
    await page.locator("#board").waitFor();
    await until(page, "the node", () => document.querySelector("#headline").textContent !== "not connected");
    const wide = await page.evaluate(() => [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".skip, .unseen")).map((one) => one.outerHTML.slice(0, 80)));
    check(!wide.length, `wider than the screen: ${wide}`);
    check(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "the page scrolls sideways");
    for (const button of await page.locator("button:visible").all()) check((await button.boundingBox()).height >= 38, `too small for a finger: ${await button.innerText()}`);
  },
};

const OPTIONS = { phone: { viewport: { width: 390, height: 844 } }, stranger: { bare: true } };

async function main([name, url], token) {
  await withPage({ url, token, ...OPTIONS[name] }, (page) => scenarios[name](page, url, token));
}

main(process.argv.slice(2), process.env.MODELD_TOKEN).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
