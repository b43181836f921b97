// The text of an answer as elements: paragraphs, lists, code, bold text and citations. Nothing in it becomes a link to
// another host, or markup that the page did not make.
import { element } from "/page/dom.js";

const OPEN = "\ue000"; // around the numbers of a citation
const CLOSE = "\ue001";
const INLINE = /\ue000([\d,]+)\ue001|`([^`\n]+)`|\*\*(?=\S)([^*\n]+?)\*\*/g;
const ITEM = /^\s{0,12}(?:[-*•]|(\d{1,3})[.)])\s+/;

// `places`: [start, end, number] of each citation, in code points; null while the answer arrives. `cite(number)` makes a link.
export function rendered(text, places, count, cite) {
  const lines = (places ? placed(text, places) : guessed(text, count)).split("\n");
  const blocks = [];
  const citing = (numbers) => numbers.split(",").map(Number).filter((number) => number >= 1 && number <= count).map(cite);
  for (let i = 0; i < lines.length; i++) {
    const item = lines[i].match(ITEM);
    if (lines[i].trimStart().startsWith("```")) {
      const code = [];
      for (i++; i < lines.length && !lines[i].trimStart().startsWith("```"); i++) code.push(lines[i]);
      blocks.push(element("pre", { tabindex: "0" }, [code.join("\n").replace(/[\ue000\ue001]/g, "")]));
    } else if (item) {
      const name = item[1] ? "ol" : "ul";
      if (blocks.at(-1)?.localName !== name) blocks.push(element(name, item[1] ? { start: item[1] } : {}));
      blocks.at(-1).append(element("li", { dir: "auto" }, inline(lines[i].slice(item[0].length), citing)));
    } else if (lines[i].trim()) {
      const heading = lines[i].match(/^#{1,6}\s+(.*)/);
      const parts = inline(heading ? heading[1] : lines[i], citing);
      blocks.push(element("p", { dir: "auto" }, heading ? [element("strong", {}, parts)] : parts));
    }
  }
  return blocks;
}

function inline(line, citing) {
  const parts = [];
  let place = 0;
  for (const match of line.matchAll(INLINE)) {
    parts.push(line.slice(place, match.index));
    if (match[1]) parts.push(...citing(match[1]));
    else if (match[2]) parts.push(element("code", {}, [match[2]]));
    else parts.push(element("strong", {}, inline(match[3], citing)));
    place = match.index + match[0].length;
  }
  return [...parts, line.slice(place)];
}

function placed(text, places) {
  const points = Array.from(text.replace(/[\ue000\ue001]/g, "\ufffd"));
  const numbers = new Map();
  for (const [start, end, number] of places) numbers.set(start, { end, all: [...(numbers.get(start)?.all ?? []), number] });
  let made = "";
  let place = 0;
  for (const [start, { end, all }] of [...numbers].sort((a, b) => a[0] - b[0])) {
    made += points.slice(place, start).join("") + OPEN + all.join(",") + CLOSE;
    place = end;
  }
  return made + points.slice(place).join("");
}

function guessed(text, count) {
  const clean = text.replace(/[\ue000\ue001]/g, "\ufffd");
  return clean.replace(/\[(\d{1,3}(?:, ?\d{1,3})*)\]/g, (all, numbers) => (numbers.split(",").every((one) => +one >= 1 && +one <= count) ? OPEN + numbers.replaceAll(" ", "") + CLOSE : all));
}
