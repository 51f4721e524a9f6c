"use strict";
// The live page: a chat, and beside it what the engine does. `/live` sends a look at it ten times a second.
const $ = (id) => document.getElementById(id);
const COLOURS = { host: "#d9822b", devices: "#3b7dd8", sampler: "#2f9e6b" };
const PLAN = { weights: "#3b7dd8", kv: "#2f9e6b", workspace: "#d9822b", host: "#8a63d2", staging: "#999" };
const hue = (number) => `hsl(${(number * 137.5) % 360} 65% 52%)`;

// ---- requests ----
function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.status === 401) $("key").hidden = false;
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message ?? `the server answered ${answer.status}`);
  }
  return answer;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

// ---- chat ----
let conversation = [];
let running = null;

function bubble(role, text) {
  const element = document.createElement("div");
  element.className = `message ${role}`;
  element.textContent = text;
  $("messages").append(element);
  element.scrollIntoView();
  return element;
}

async function send(text) {
  conversation.push({ role: "user", content: text });
  bubble("user", text);
  const shown = bubble("assistant", "");
  const answer = { role: "assistant", content: "" };
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  try {
    const body = JSON.stringify({ model: $("model").value || undefined, messages: conversation, stream: true });
    const stream = await call("v1/chat/completions", { method: "POST", body, signal: running.signal });
    for await (const data of events(stream)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices[0]?.delta ?? {};
      answer.content += delta.content ?? "";
      shown.textContent += delta.reasoning_content ?? delta.content ?? "";
      $("messages").scrollTop = $("messages").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") bubble("error", error.message);
  }
  conversation.push(answer);
  running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running) return;
  $("text").value = "";
  send(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  $("messages").replaceChildren();
});

// ---- the engine ----
const history = { steps: [], tokens: [] };
let look = null;
let clock = 0; // the server's time less this page's
let follow = null;

async function watch() {
  for (;;) {
    try {
      follow = new AbortController();
      const model = $("model").value;
      const stream = await call(`live${model ? `?model=${encodeURIComponent(model)}` : ""}`, { signal: follow.signal });
      for await (const data of events(stream)) take(JSON.parse(data));
    } catch (error) {
      if (error.name !== "AbortError") $("state").textContent = error.message;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function take(next) {
  look = next;
  const now = Date.now() / 1000;
  for (const step of next.steps) history.steps.push(step);
  const last = next.steps.at(-1);
  if (last) clock = last[0] + last[1] + last[2] + last[3] - now;
  history.steps = history.steps.filter((step) => step[0] > now + clock - 3);
  history.tokens.push([now, next.steps.reduce((sum, step) => sum + step[5], 0)]);
  history.tokens = history.tokens.filter((entry) => entry[0] > now - 61);
  const recent = history.tokens.filter((entry) => entry[0] > now - 1);
  $("state").textContent = next.state;
  $("speed").textContent = recent.reduce((sum, entry) => sum + entry[1], 0);
  $("steps").textContent = history.steps.filter((step) => step[0] > now + clock - 1).length;
  $("running").textContent = next.plan ? `${next.running} of ${next.plan.sequences}` : next.running;
  $("waiting").textContent = next.waiting;
  $("rows").textContent = last ? last[4] : 0;
  $("cached").textContent = next.cached_tokens;
}

function surface(id) {
  const canvas = $(id), scale = devicePixelRatio, wide = canvas.clientWidth, high = canvas.clientHeight;
  if (canvas.width !== wide * scale || canvas.height !== high * scale) {
    canvas.width = wide * scale;
    canvas.height = high * scale;
  }
  const paint = canvas.getContext("2d");
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  paint.clearRect(0, 0, wide, high);
  paint.font = "11px system-ui";
  return [paint, wide, high];
}

function drawLanes() {
  const [paint, wide, high] = surface("lanes");
  const end = Date.now() / 1000 + clock, span = 2, left = 70;
  const names = { host: "host", devices: look.devices.join(" + ") || "devices", sampler: "sampler" };
  Object.keys(names).forEach((lane, row) => {
    const top = row * (high / 3) + 3, tall = high / 3 - 6;
    paint.fillStyle = COLOURS[lane];
    paint.fillText(names[lane], 4, top + tall / 2 + 4);
    for (const [began, host, wait, sample] of history.steps) {
      const begin = began + [0, host, host + wait][row], seconds = [host, wait, sample][row];
      const x = left + ((begin - end + span) / span) * (wide - left);
      const width = Math.max(0.5, (seconds / span) * (wide - left));
      if (x + width > left) paint.fillRect(Math.max(left, x), top, width, tall);
    }
  });
}

function drawTokens() {
  const [paint, wide, high] = surface("tokens");
  const now = Date.now() / 1000, seconds = new Array(60).fill(0);
  for (const [at, count] of history.tokens) {
    const second = 59 - Math.floor(now - at);
    if (second >= 0 && second < 60) seconds[second] += count;
  }
  const most = Math.max(10, ...seconds);
  paint.fillStyle = COLOURS.devices;
  seconds.forEach((count, i) => paint.fillRect((i * wide) / 60, high - (count / most) * (high - 14), wide / 60 - 1, high));
  paint.fillText(`${most}`, 4, 11);
}

function drawBatch() {
  const [paint, wide, high] = surface("batch");
  const steps = history.steps.slice(-200), most = Math.max(1, look.plan?.sequences ?? 1, ...steps.map((step) => step[4]));
  steps.forEach((step, i) => {
    const tall = (step[4] / most) * (high - 2);
    paint.fillStyle = step[4] > step[5] ? COLOURS.host : COLOURS.sampler;
    paint.fillRect((i * wide) / 200, high - tall, wide / 200 - 0.5, tall);
  });
}

function drawPlan() {
  const [paint, wide, high] = surface("plan");
  if (!look.plan) return;
  const parts = [];
  for (const device of look.plan.devices)
    for (const use of ["weights", "kv", "workspace", "host"])
      if (device[use]) parts.push([`${device.device} ${use}`, device[use], PLAN[use]]);
  parts.push(["staging", look.plan.staging, PLAN.staging]);
  let x = 0;
  for (const [, bytes, colour] of parts) {
    paint.fillStyle = colour;
    paint.fillRect(x, 0, (bytes / look.plan.total) * wide, high);
    x += (bytes / look.plan.total) * wide;
  }
  const size = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  $("memory").textContent = `${size(look.plan.total)}, planned before loading`;
  if ($("legend").childElementCount !== parts.length)
    $("legend").replaceChildren(
      ...parts.flatMap(([name, bytes, colour]) => {
        const mark = document.createElement("i");
        mark.style.background = colour;
        return [mark, `${name} ${size(bytes)}`];
      }),
    );
}

function drawPages() {
  const [paint, wide, high] = surface("pages");
  const groups = look.pages, tall = high / Math.max(1, groups.length);
  groups.forEach(([total, used, cached], group) => {
    const top = group * tall, room = tall - 16;
    const side = Math.max(1, Math.floor(Math.sqrt((wide * room) / total)));
    const columns = Math.max(1, Math.floor(wide / side));
    const cell = (page, colour) => {
      paint.fillStyle = colour;
      const gap = side > 3 ? 1 : 0;
      paint.fillRect((page % columns) * side, top + 14 + Math.floor(page / columns) * side, side - gap, side - gap);
    };
    paint.fillStyle = "#888";
    paint.fillText(`group ${group}: ${used} used, ${cached} cached, ${total - used - cached} free of ${total}`, 4, top + 11);
    for (let page = 0; page < total; page++) cell(page, "#8883");
    look.owned.forEach(([, , pages], owner) => pages[group].forEach((page) => cell(page, hue(owner))));
  });
}

function draw() {
  if (look) for (const each of [drawLanes, drawTokens, drawBatch, drawPlan, drawPages]) each();
  requestAnimationFrame(draw);
}

async function models() {
  const list = await (await call("v1/models")).json();
  $("model").replaceChildren(...list.data.map((model) => new Option(model.id, model.id)));
}

$("model").addEventListener("change", () => follow?.abort());
$("key").addEventListener("change", () => models().catch(() => {}));
models().catch((error) => ($("state").textContent = error.message));
watch();
draw();
