// Search as you type, keys, and changes without a new page. Everything here also works without it: links and
// forms lead to the same addresses, and the server renders them.
"use strict";

const PAUSE = 160; // milliseconds after the last key
let running = null;
let timer = 0;

const $ = (selector) => document.querySelector(selector);

function ours(url) {
  return url.origin === location.origin && url.pathname === "/" && location.pathname === "/";
}

// Load an address and put its parts that change into this page; the search field stays as it is.
async function visit(url, { how = "push", init = {} } = {}) {
  clearTimeout(timer);
  running?.abort();
  const asked = (running = new AbortController());
  document.body.classList.add("busy");
  try {
    const response = await fetch(url, { ...init, signal: asked.signal, headers: { Accept: "text/html" } });
    const there = new URL(response.url);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    if (there.pathname !== "/" || !fresh.querySelector("#live")) {
      if (response.status >= 500 || response.status === 429) return said(fresh);
      location.assign(there);
      return;
    }
    const focused = document.activeElement?.id;
    for (const part of fresh.querySelectorAll("[data-live]")) {
      document.getElementById(part.id)?.replaceWith(document.adoptNode(part));
    }
    hold(fresh);
    document.title = fresh.title;
    if (how === "push") history.pushState(null, "", there);
    if (how === "replace") history.replaceState(null, "", there);
    if (focused && focused !== "q") document.getElementById(focused)?.focus({ preventScroll: true });
  } catch (error) {
    if (error.name === "AbortError") return;
    said(null);
  } finally {
    if (running === asked) {
      running = null;
      document.body.classList.remove("busy");
    }
  }
}

// The form carries the filters of the page that is shown now.
function hold(fresh) {
  const form = $("#search");
  const other = fresh.querySelector("#search");
  if (!form || !other) return;
  form.querySelectorAll("input[type=hidden]").forEach((field) => field.remove());
  other.querySelectorAll("input[type=hidden]").forEach((field) => form.prepend(document.adoptNode(field)));
  const field = $("#q");
  if (document.activeElement !== field) field.value = other.querySelector("#q").value;
}

function said(fresh) {
  const status = $("#status");
  const why = fresh?.querySelector(".failure p")?.textContent;
  if (status) status.textContent = why || "The server does not answer just now. Press Enter to try again.";
}

function address(form, submitter) {
  const url = new URL(form.getAttribute("action"), location.href);
  const fields = new FormData(form, submitter);
  for (const [name, value] of [...fields]) if (!value && name !== "grade") fields.delete(name);
  url.search = new URLSearchParams(fields).toString();
  return url;
}

document.addEventListener("input", (event) => {
  if (event.target.id !== "q" || location.pathname !== "/" || event.isComposing) return;
  const form = $("#search");
  clearTimeout(timer);
  timer = setTimeout(() => {
    const text = event.target.value.trim();
    if (text.length !== 1) visit(address(form), { how: "replace" });
  }, PAUSE);
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  const url = new URL(form.getAttribute("action") || "", location.href);
  if (form.method === "get" && ours(url)) {
    event.preventDefault();
    visit(address(form, event.submitter));
  } else if (form.classList.contains("marks") && location.pathname === "/") {
    event.preventDefault();
    const body = new URLSearchParams(new FormData(form, event.submitter));
    visit(url, { how: "none", init: { method: "POST", body } });
  }
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  const plain = !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.button);
  if (event.target.id === "help-open") $("#help").showModal();
  if (!link || !plain || link.closest("header") || !ours(new URL(link.href))) return;
  event.preventDefault();
  const top = !link.closest(".side, .chips");
  visit(link.href).then(() => top && scrollTo(0, 0));
});

document.addEventListener("change", (event) => {
  if (event.target.matches(".choice select, .switch select")) event.target.form.requestSubmit();
});

addEventListener("popstate", () => {
  if (location.pathname === "/") visit(location.href, { how: "none" });
});

function step(by) {
  const links = [...document.querySelectorAll("#hits .open, .queries .name a")];
  if (!links.length) return;
  const now = links.indexOf(current());
  const next = links[Math.min(links.length - 1, Math.max(0, now < 0 ? 0 : now + by))];
  next.focus({ preventScroll: true });
  next.closest("li").scrollIntoView({ block: "nearest" });
}

// The result that has the focus, or a part of which has.
function current() {
  return document.activeElement?.closest("li")?.querySelector(".open, .name a");
}

function press(selector) {
  const item = current()?.closest("li") ?? (location.pathname === "/document" ? $(".document") : null);
  const found = item?.querySelector(selector);
  if (found) found.click();
  return Boolean(found);
}

const KEYS = {
  "/": () => $("#q")?.select() ?? false,
  "?": () => $("#help").showModal(),
  j: () => step(1),
  k: () => step(-1),
  ArrowDown: () => (current() ? step(1) : false),
  ArrowUp: () => (current() ? step(-1) : false),
  m: () => press(".like"),
  r: () => press(".mark:first-of-type"),
  w: () => press(".mark:last-of-type"),
  c: () => $('#tabs a[href^="/compare"]').click(),
};
const JUDGE = {
  y: "#grade-1", 1: "#grade-1", n: "#grade-0", 0: "#grade-0", 2: "#grade-2", 3: "#grade-3",
  s: "#skip", u: "#undo", m: "#whole",
};

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || event.isComposing || $("dialog[open]")) return;
  const typing = event.target.matches("input, select, textarea");
  if (typing && event.key === "Escape") event.target.blur();
  if (typing && event.key === "ArrowDown" && event.target.id === "q" && $("#hits .open")) {
    event.preventDefault();
    step(1);
  }
  if (typing) return;
  const grade = $("#grades") && !event.repeat ? $(JUDGE[event.key] ?? "none") : null;
  if (grade) {
    event.preventDefault();
    grade.click();
  } else if (Object.hasOwn(KEYS, event.key) && KEYS[event.key]() !== false) {
    event.preventDefault();
  }
});

$("#help-open")?.removeAttribute("hidden");
// Keyboard first: a page without results waits for a query.
if (location.pathname === "/" && !$("#hits") && !("ontouchstart" in window)) $("#q")?.focus();
