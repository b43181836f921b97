// Questions and answers: each answer arrives in pieces, and its numbers lead to the passages that it cites.
import { explained, stream } from "/page/api.js";
import { rendered } from "/page/answer.js";
import { byId, button, element } from "/page/dom.js";
import { copyButton } from "/page/passage.js";

const MOST_TURNS = 8; // that are sent along with a follow-up question

// `page`: show(hits, body, cited), select(hit, options), say(text, bad).
export function conversation(page) {
  const turns = [];
  let running = null;

  function history() {
    const done = turns.filter((turn) => turn.answered).slice(-MOST_TURNS);
    return done.flatMap((turn) => [{ role: "user", content: turn.question }, { role: "assistant", content: turn.text }]);
  }

  async function ask(question, body) {
    running?.abort();
    const { signal } = (running = new AbortController());
    const past = history();
    const turn = begin(question, body);
    const asked = { ...body, question, ...(past.length ? { history: past } : {}) };
    busy(true);
    page.show([], null);
    page.say("Searching …");
    try {
      for await (const [name, data] of stream("/ask", asked, signal)) take(turn, name, data);
      if (!turn.done) throw new TypeError("the stream ended early");
      page.say("");
    } catch (error) {
      if (signal.aborted) end(turn, "Stopped.");
      else end(turn, error instanceof TypeError && turn.hits.length ? "The answer broke off: the server does not answer." : explained(error), true);
      if (!signal.aborted || running?.signal === signal) page.say("");
    } finally {
      if (running?.signal === signal) busy(false);
      draw(turn);
    }
  }

  function busy(is) {
    byId("stop").hidden = !is;
    byId("answers").setAttribute("aria-busy", String(is));
    if (!is) running = null;
  }

  function begin(question, body) {
    const node = element("article", { class: "turn" }, [
      element("h3", { dir: "auto" }, [question]),
      element("p", { class: "hint", hidden: "", dir: "auto" }),
      element("div", { class: "answer", dir: "auto" }),
      element("p", { class: "message" }),
      element("div", { class: "actions" }),
    ]);
    const turn = { question, body, node, hits: [], text: "", places: null, cited: [], done: false };
    turns.push(turn);
    byId("answers").prepend(node); // the latest is below the form
    byId("answers-card").hidden = false;
    byId("query").value = "";
    byId("query").placeholder = "Ask a follow-up question";
    return turn;
  }

  function take(turn, name, data) {
    if (name === "query") {
      if (data.query === turn.question) return;
      turn.node.children[1].textContent = `Searched for: ${data.query}`;
      turn.node.children[1].hidden = false;
    } else if (name === "passages") {
      turn.hits = data.hits;
      turn.query = turn.node.children[1].hidden ? turn.question : turn.node.children[1].textContent;
      showPassages(turn);
      page.say("Writing the answer …");
    } else if (name === "text") turn.text += data.text;
    else if (name === "restart") turn.text = "";
    else if (name === "answer") finish(turn, data);
    else if (name === "error") end(turn, data.error?.message ?? "The answer failed.", true);
    turn.frame ??= requestAnimationFrame(() => draw(turn));
  }

  function finish(turn, data) {
    Object.assign(turn, { text: data.answer, places: data.places, cited: data.cited, done: true, answered: data.answer !== "" });
    if (data.warnings.length) note(turn, data.warnings.join(" "), "warn");
    if (turn.hits.length) showPassages(turn);
    offer(turn);
  }

  function end(turn, message, bad = false) {
    turn.done = true;
    note(turn, message, bad ? "bad" : "");
    turn.node.lastChild.replaceChildren(button("Ask again", () => {
      turns.splice(turns.indexOf(turn), 1);
      turn.node.remove();
      ask(turn.question, turn.body);
    }));
  }

  function note(turn, text, kind) {
    turn.node.children[3].textContent = text;
    turn.node.children[3].className = `message ${kind}`;
  }

  function offer(turn) {
    const actions = [copyButton("Copy answer", () => turn.text)];
    if (turn.hits.length) actions.push(button("Show its passages", () => {
      showPassages(turn);
      byId("results").scrollIntoView({ block: "nearest" });
    }, { class: "plain" }));
    turn.node.lastChild.replaceChildren(...actions);
  }

  function showPassages(turn) {
    shown = turn;
    page.show(turn.hits, { query: turn.question, mode: turn.body.mode }, turn.cited);
  }
  let shown = null; // the turn whose passages are on the page

  function draw(turn) {
    if (turn.frame) cancelAnimationFrame(turn.frame);
    turn.frame = null;
    turn.node.children[2].replaceChildren(...rendered(turn.text, turn.places, turn.hits.length, (number) => {
      const hit = turn.hits[number - 1];
      const link = element("a", { href: "#hits", class: "cite", "aria-label": `passage ${number}, ${hit.document.slice(0, 100)}` }, [String(number)]);
      link.addEventListener("click", (event) => {
        event.preventDefault();
        if (shown !== turn) showPassages(turn);
        page.select(hit, { push: true });
      });
      return link;
    }));
  }

  byId("stop").addEventListener("click", () => running?.abort());
  byId("new-talk").addEventListener("click", () => {
    running?.abort();
    turns.length = 0;
    byId("answers").replaceChildren();
    byId("answers-card").hidden = true;
    byId("query").placeholder = "";
    page.show([], null);
    page.say("");
    byId("query").focus();
  });

  return {
    turns,
    ask,
    // Show the answer to a question of this conversation; to another one, only the question, which nobody has asked yet.
    restore(question) {
      const turn = turns.findLast((one) => one.question === question) ?? (question ? null : turns.at(-1));
      if (turn?.hits.length) showPassages(turn);
      else page.show([], null);
      if (turn) byId("query").value = "";
      page.say(question && !turn ? "Press Ask to get an answer." : "");
    },
  };
}
