// The page on which a tuned model is tried: every task's answer to the same history and query, side by side.
"use strict";

const at = (id) => document.getElementById(id);
const make = (tag, text, attributes = {}) => {
  const made = document.createElement(tag);
  made.textContent = text ?? "";
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

let tasks = [];
const history = []; // of {item, text}

async function ask(url, body) {
  const options = body && {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const reply = await fetch(url, options);
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

// ---- history -----------------------------------------------------------------------------------

function showHistory() {
  at("history").replaceChildren(...history.map((entry, i) => {
    const remove = make("button", entry.text ?? entry.item, { type: "button", title: `take ${entry.item} out` });
    remove.addEventListener("click", () => { history.splice(i, 1); showHistory(); rank(); });
    const place = make("li");
    place.append(remove);
    return place;
  }));
}

function add(entry) {
  history.push(entry);
  at("find").value = "";
  showFound([]);
  showHistory();
  rank();
}

let found = [], chosen = -1, asked = 0;

function showFound(items) {
  [found, chosen] = [items, items.length ? 0 : -1];
  at("found").hidden = items.length === 0;
  at("find").setAttribute("aria-expanded", items.length > 0);
  at("found").replaceChildren(...items.map((entry, i) => {
    const line = make("li", entry.text ?? "", { role: "option", id: `found-${i}` });
    line.append(" ", make("span", entry.item, { class: "id" }));
    line.addEventListener("mousedown", (event) => { event.preventDefault(); add(entry); });
    return line;
  }));
  choose(chosen);
}

function choose(i) {
  chosen = i;
  [...at("found").children].forEach((line, k) => line.setAttribute("aria-selected", k === i));
  if (i < 0) at("find").removeAttribute("aria-activedescendant");
  else at("find").setAttribute("aria-activedescendant", `found-${i}`);
  at("found").children[i]?.scrollIntoView({ block: "nearest" });
}

at("find").addEventListener("input", async () => {
  const text = at("find").value.trim(), mine = ++asked;
  const items = text ? await ask(`/items?text=${encodeURIComponent(text)}`).then((a) => a.items, () => []) : [];
  if (mine === asked) showFound(items);
});
at("find").addEventListener("blur", () => showFound([]));
at("find").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && found.length) choose((chosen + step + found.length) % found.length);
  else if (event.key === "Enter" && chosen >= 0) add(found[chosen]);
  else if (event.key === "Escape") showFound([]);
  else if (event.key === "Backspace" && !at("find").value && history.length) { history.pop(); showHistory(); }
  else return;
  event.preventDefault();
});

// ---- answers -----------------------------------------------------------------------------------

function table(answer) {
  const rows = answer.items.map((row, i) => {
    const line = make("tr"), item = make("td", row.text ?? "");
    item.append(" ", make("span", row.item, { class: "id" }));
    line.append(make("td", i + 1), item, make("td", row.log_likelihood.toFixed(2)));
    return line;
  });
  const head = make("tr");
  head.append(...["", "item", "log likelihood"].map((name) => make("th", name, { scope: "col" })));
  const all = make("table");
  all.append(head, ...rows);
  return all;
}

// What a task cannot be asked without, in words; nothing: it can be asked.
function missing(task, hasQuery) {
  if (history.length && hasQuery) return "";
  if (history.length) return task.history_alone ? "" : "needs a query";
  if (hasQuery && task.query_alone) return "";
  return task.query_alone ? "needs a query" : "needs a history";
}

let ranked = 0;

async function rank() {
  const query = at("query").value.trim(), mine = ++ranked;
  const rest = { exclude_history: at("exclude").checked, top: Number(at("top").value) || 10 };
  const answers = await Promise.all(tasks.map(async (task) => {
    const shown = make("section");
    shown.append(make("h2", task.task));
    const typed = task.shows_query && query ? query : null, why = missing(task, Boolean(typed));
    try {
      shown.append(why ? make("p", why, { class: "note" }) : table(await ask("/rank", {
        task: task.task, history: history.map((entry) => entry.item), query: typed, ...rest,
      })));
    } catch (error) {
      shown.append(make("p", error.message, { role: "alert" }));
    }
    return shown;
  }));
  if (mine === ranked) at("answers").replaceChildren(...answers);
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); rank(); });
at("exclude").addEventListener("change", rank);
at("top").addEventListener("change", rank);

ask("/about").then((about) => {
  tasks = about.tasks;
  at("run").textContent = document.title = about.run;
  at("facts").textContent = `${about.items} items · ${tasks.map((t) => t.task).join(", ")} · gems-engine ${about.version}`;
  rank();
}, (error) => { at("facts").textContent = error.message; });
