"use strict";
// What an operator can change: the token (kept in this tab), and the calls of /control.

const $ = id => document.getElementById(id);
const TOKEN = "trimtab-token", NAME = "trimtab-name";

// Asks for the token; resolves to whether there is one now.
function askToken(text) {
  const dialog = $("ask");
  if (text) $("ask-text").textContent = text;
  $("token").value = "";
  $("name").value = sessionStorage.getItem(NAME) || "";
  return new Promise(resolve => {
    const done = given => {
      dialog.querySelector("form").onsubmit = $("ask-cancel").onclick = dialog.oncancel = null;
      dialog.close();
      resolve(given);
    };
    dialog.querySelector("form").onsubmit = event => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, $("token").value.trim());
      sessionStorage.setItem(NAME, $("name").value.trim());
      done(true);
    };
    $("ask-cancel").onclick = () => done(false);
    dialog.oncancel = event => { event.preventDefault(); done(false); };
    dialog.showModal();
    $("token").focus();
  });
}

// Carries one order out. Resolves to {ok, text}.
async function order(action, body) {
  if (!sessionStorage.getItem(TOKEN) && !await askToken()) return { ok: false, text: "" };
  for (let tries = 0; ; tries += 1) {
    const who = sessionStorage.getItem(NAME);
    let answer, told;
    try {
      answer = await fetch(`control/${action}`, {
        method: "POST",
        headers: { "Content-Type": "application/json", Authorization: `Bearer ${sessionStorage.getItem(TOKEN)}` },
        body: JSON.stringify(who ? { ...body, who } : body),
        credentials: "omit",
      });
      told = await answer.json();
    } catch {
      return { ok: false, text: "the policy server does not answer; nothing was changed" };
    }
    if (answer.status !== 401) return { ok: answer.ok, text: told.done || told.error };
    sessionStorage.removeItem(TOKEN);
    if (tries === 2 || !await askToken("That token is wrong. Try again.")) return { ok: false, text: told.error };
  }
}
