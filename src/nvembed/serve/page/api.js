// Requests to this server. If it requires an API key, the page asks for one and keeps it in this variable only: no
// storage, no cookie.
let key = "";
let asking = null;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Return the JSON of a GET, or of a POST if there is a body. Throws Refused, or TypeError if the server cannot be reached.
export async function ask(path, body) {
  for (;;) {
    const used = key;
    const headers = used ? { Authorization: `Bearer ${used}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const method = body === undefined ? "GET" : "POST";
    const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
    if (answer.ok) return answer.json();
    if (answer.status === 401) {
      if (used === key) await askForKey(used !== "");
      continue;
    }
    throw new Refused(answer.status, await reason(answer));
  }
}

async function reason(answer) {
  const content = await answer.json().catch(() => ({}));
  const message = content.error?.message ?? content.error ?? content.message ?? answer.statusText;
  const wait = answer.headers.get("retry-after");
  return wait ? `${message} (in ${wait} s)` : String(message);
}

// Show the dialog once, however many requests wait for the key.
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = element("dialog", { "aria-labelledby": "key-title" }, [
      element("h2", { id: "key-title" }, ["API key"]),
      element("p", {}, [wrong ? "Unknown API key. Try another one." : "This server requires an API key. It is kept in memory until you leave this page."]),
      element("form", { method: "dialog" }, [
        element("label", {}, ["Key", element("input", { id: "key", type: "password", required: "", autocomplete: "off", pattern: "\\s*[!-~]+\\s*", title: "printable ASCII without spaces" })]),
        element("button", {}, ["Continue"]),
      ]),
    ]);
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // nothing here works without it
    dialog.addEventListener("close", () => {
      key = dialog.querySelector("input").value.trim();
      dialog.remove();
      asking = null;
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

// Return an element; its children are nodes, or text that is never parsed as markup.
export function element(name, attributes = {}, children = []) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);
export const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
