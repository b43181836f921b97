// Compares queries with passages, with and without the instruction, as two heat maps on one scale.
import { explained, request } from "/page/api.js";
import { byId, element } from "/page/dom.js";

const lines = (id) => byId(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

// Return unit vectors, and how many texts were cut.
async function embed(texts, options) {
  const answer = await request("/v1/embeddings", { input: texts, truncate: "END", ...options });
  return { vectors: answer.data.map((row) => row.embedding), cut: answer.details.truncated.length };
}

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

async function compare() {
  const queries = lines("queries");
  const others = lines("passages");
  const instruction = byId("instruction").value.trim();
  if (!queries.length) throw new Error("Write at least one query.");
  const asked = [embed(queries, { input_type: "passage" })];
  if (instruction) asked.push(embed(queries, { instruction }));
  if (others.length) asked.push(embed(others, { input_type: "passage" }));
  const answers = await Promise.all(asked);
  const plain = answers[0].vectors;
  const prompted = instruction ? answers[1].vectors : null;
  const passages = others.length ? answers.at(-1).vectors : null;
  const grid = (rows) => rows.map((row) => (passages ?? rows).map((other) => dot(row, other)));
  const maps = prompted ? [["With the instruction", instruction, grid(prompted)]] : [];
  maps.push(["Without an instruction", "the queries alone", grid(plain)]);
  draw(maps, queries, passages ? others : queries, !passages);
  const cut = answers.reduce((sum, one) => sum + one.cut, 0);
  return cut ? `${cut} texts were too long and were cut.` : "";
}

function draw(maps, rows, columns, square) {
  // a text with itself is 1: it would flatten every other difference
  const counted = maps.flatMap(([, , grid]) => grid.flatMap((row, i) => row.filter((_, j) => !(square && i === j))));
  const low = counted.length ? Math.min(...counted) : 0;
  const high = counted.length ? Math.max(...counted) : 1;
  const share = (value) => (high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 1);
  const drawn = maps.map(([title, note, grid]) =>
    element("figure", {}, [
      element("figcaption", {}, [element("h3", {}, [title]), element("p", {}, [note])]),
      element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": title }, [table(grid, rows, columns, share, square)]),
    ]),
  );
  const legend = element("p", { class: "legend" }, [low.toFixed(3), element("i"), high.toFixed(3), "cosine; each row's highest is framed"]);
  byId("maps").replaceChildren(...drawn, legend);
}

function table(grid, rows, columns, share, square) {
  const heads = columns.map((text) => element("th", { scope: "col", title: text }, [element("span", { dir: "auto" }, [text])]));
  const body = grid.map((values, i) => {
    const best = Math.max(...values.filter((_, j) => !(square && i === j)));
    const cells = values.map((value, j) => {
      const self = square && i === j;
      const heat = share(value);
      const ink = heat > 0.68 ? "strong" : heat > 0.42 ? "middle" : "weak";
      const cell = element("td", { class: !self && value === best ? `${ink} best` : ink }, [value.toFixed(3)]);
      cell.style.setProperty("--heat", `${100 * heat}%`);
      return cell;
    });
    return element("tr", {}, [element("th", { scope: "row", title: rows[i] }, [element("span", { dir: "auto" }, [rows[i]])]), ...cells]);
  });
  return element("table", { class: "heat" }, [
    element("thead", {}, [element("tr", {}, [element("td"), ...heads])]),
    element("tbody", {}, body),
  ]);
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("go").disabled = true;
  byId("message").className = "message";
  byId("message").textContent = "Embedding …";
  try {
    byId("message").textContent = await compare();
  } catch (error) {
    byId("message").textContent = explained(error);
    byId("message").classList.add("bad");
  }
  byId("go").disabled = false;
});

byId("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
