"use strict";
// The secret is in the link's fragment, which no server and no log sees; it is sent once, by POST,
// when a person presses the button: what only looks at links uses none up.
const secret = location.hash.slice(1);
const button = document.getElementById("enter");
const problem = document.getElementById("problem");
if (secret) {
  document.getElementById("how").textContent = "This link lets you in once, on this browser.";
  button.hidden = false;
  button.focus();
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const answer = await fetch("/v1/session", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ secret }),
      });
      if (answer.ok) return location.replace("/");
      problem.textContent = (await answer.json()).detail;
    } catch {
      problem.textContent = "The server cannot be reached. Try again in a moment.";
    }
    button.disabled = false;
  });
}
