// Requests to this server. If it requires an API key, the page asks for one and keeps it in this variable only: no
// storage, no cookie.
import { element } from "/page/dom.js";

let key = "";
let dialog = null; // a promise while the key is being asked for

export class Refused extends Error {
  constructor(status, code, message, retryAfter) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

// Return the JSON of a GET, or of a POST if there is a body. Throws Refused, or TypeError if the server cannot be reached.
export async function request(path, body, signal) {
  return (await send(path, body, signal)).json();
}

// Yield the events of a POST as [name, data], data parsed as JSON.
export async function* stream(path, body, signal) {
  const reader = (await send(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => line.match(/^(\w+): ?(.*)$/)).filter(Boolean);
      const data = fields.filter(([, name]) => name === "data").map(([, , text]) => text).join("\n");
      if (data) yield [fields.find(([, name]) => name === "event")?.[2] ?? "message", JSON.parse(data)];
    }
  }
}

// What to show for an error of a request.
export function explained(error) {
  if (error instanceof TypeError) return "The server does not answer. Check that it is running, then try again.";
  return error.retryAfter ? `${error.message} (in ${error.retryAfter} s)` : error.message;
}

async function send(path, body, signal) {
  for (;;) {
    const used = key;
    const headers = used ? { Authorization: `Bearer ${used}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const method = body === undefined ? "GET" : "POST";
    const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store", signal });
    if (answer.ok) return answer;
    if (answer.status !== 401) throw await refusal(answer);
    if (used === key) await askForKey(used !== "");
  }
}

async function refusal(answer) {
  const content = await answer.json().catch(() => ({}));
  const fault = content.error?.message ? content.error : content;
  const message = String(fault.message ?? fault.error ?? answer.statusText);
  return new Refused(answer.status, fault.code ?? "", message, Number(answer.headers.get("retry-after")));
}

// Show the dialog once, however many requests wait for the key.
function askForKey(wrong) {
  dialog ??= new Promise((resolve) => {
    const shown = element("dialog", { "aria-labelledby": "key-title" }, [
      element("h2", { id: "key-title" }, ["API key"]),
      element("p", {}, [wrong ? "Unknown API key. Try another one." : "This server requires an API key. It is kept in memory until you leave this page."]),
      element("form", { method: "dialog" }, [
        element("label", {}, ["Key", element("input", { id: "key", type: "password", required: "", autocomplete: "off", pattern: "\\s*[!-~]+\\s*", title: "printable ASCII without spaces" })]),
        element("button", {}, ["Continue"]),
      ]),
    ]);
    shown.addEventListener("cancel", (event) => event.preventDefault()); // nothing here works without it
    shown.addEventListener("close", () => {
      key = shown.querySelector("input").value.trim();
      shown.remove();
      dialog = null;
      resolve();
    });
    document.body.append(shown);
    shown.showModal();
  });
  return dialog;
}
