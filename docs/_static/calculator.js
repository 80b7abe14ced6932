/* The page "What can I train on my GPU?". Its data are in atlas.js, by tools/calculator.py. */
(function () {
  "use strict";
  const atlas = window.ATLAS;
  const root = document.getElementById("calculator");
  if (!atlas || !root || !atlas.models.length) return;

  const byId = (list) => Object.fromEntries(list.map((each) => [each.id, each]));
  const gpus = byId(atlas.gpus);
  const models = byId(atlas.models);
  const methods = byId(atlas.methods);
  const kinds = Object.keys(atlas.kinds);
  const AUTO = "auto";
  const lengths = [...new Set(atlas.shapes.map(([, length]) => length))].sort((a, b) => a - b);
  const batches = [...new Set(atlas.shapes.map(([batch]) => batch))].sort((a, b) => a - b);
  const first = { gpu: "t4", model: "Qwen/Qwen3-0.6B", method: AUTO, length: 512, batch: 1 };
  if (!models[first.model]) first.model = atlas.models[0].id;
  let chosen = { ...first };

  // --- what is predicted, and what fits ---------------------------------------------------------

  const classOf = (gpu, model) => (models[model].wide ? gpus[gpu].wide : gpus[gpu].class);
  const methodsOn = (gpu) =>
    atlas.methods.map((each) => each.id)
      .filter((id) => atlas.classes[gpus[gpu].class].includes(id));

  function rowOf(gpu, model, method, length, batch) {
    const key = [classOf(gpu, model), model, method, batch, length].join("|");
    const row = atlas.rows[key];
    if (!row) return null;
    const [reserved, allocated, ...rest] = row;
    return {
      reserved,
      allocated,
      kinds: Object.fromEntries(kinds.map((kind, at) => [kind, rest[at]])),
      phase: atlas.phases[rest[kinds.length]],
      warnings: rest[kinds.length + 1].map((at) => atlas.warnings[at]),
      needs: reserved + gpus[gpu].context,
    };
  }

  /* true, false, or null where nothing is predicted. */
  function fits(gpu, model, method, length, batch) {
    const row = rowOf(gpu, model, method, length, batch);
    return row ? row.reserved <= gpus[gpu].usable : null;
  }

  /* The method that trains the most of those that fit, and the one that needs the least. */
  function best(gpu, model, length, batch) {
    const there = methodsOn(gpu)
      .map((id) => ({ id, row: rowOf(gpu, model, id, length, batch) }))
      .filter((each) => each.row);
    const fit = there.filter((each) => each.row.reserved <= gpus[gpu].usable);
    const least = there.reduce((a, b) => (!a || b.row.reserved < a.row.reserved ? b : a), null);
    return { fullest: fit[0] || null, least };
  }

  // --- the choice and its link ------------------------------------------------------------------

  const predictedShape = (length, batch) =>
    atlas.shapes.some(([b, l]) => b === batch && l === length);

  function valid(wanted) {
    const made = { ...first };
    if (Object.hasOwn(gpus, wanted.gpu)) made.gpu = wanted.gpu;
    if (Object.hasOwn(models, wanted.model)) made.model = wanted.model;
    if (methodsOn(made.gpu).includes(wanted.method)) made.method = wanted.method;
    if (lengths.includes(Number(wanted.length))) made.length = Number(wanted.length);
    if (batches.includes(Number(wanted.batch))) made.batch = Number(wanted.batch);
    if (!predictedShape(made.length, made.batch)) made.batch = 1;
    return made;
  }

  function fromHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    return given.has("gpu") ? Object.fromEntries(given) : null;
  }

  const hashOf = (choice) =>
    "#" + new URLSearchParams(choice).toString().replaceAll("%2F", "/");

  function choose(changes) {
    chosen = valid({ ...chosen, ...changes });
    history.replaceState(null, "", hashOf(chosen));
    show();
  }

  // --- the page's elements ----------------------------------------------------------------------

  function make(tag, options, ...children) {
    const { text, on, ...rest } = options || {};
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(rest)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    for (const [name, work] of Object.entries(on || {})) element.addEventListener(name, work);
    element.append(...children);
    return element;
  }

  const gb = (mb) => {
    const value = mb / 1000;
    return `${value.toFixed(value < 100 ? 1 : 0)} GB`;
  };
  const a = (gpu) => `${/^[AHLR]/.test(gpus[gpu].name) ? "an" : "a"} ${gpus[gpu].name}`;
  const short = (model) => model.split("/")[1];
  const tokens = (length) => length.toLocaleString("en");

  function select(name, label, options) {
    const made = make("select", { name, id: `calc-${name}` });
    for (const [value, text] of options) made.append(make("option", { value, text }));
    made.addEventListener("change", () => choose({ [name]: made.value }));
    return make("label", { for: `calc-${name}`, text: label }, made);
  }

  const form = make(
    "form",
    { "aria-label": "What you have and want", on: { submit: (event) => event.preventDefault() } },
    select("gpu", "I have a", atlas.gpus.map((gpu) => [gpu.id, `${gpu.name} (${gb(gpu.total)})`])),
    select("length", "Tokens in an example", lengths.map((n) => [n, tokens(n)])),
    select("batch", "Examples in a batch", batches.map((n) => [n, n])),
    select("method", "Method", []),
    select("model", "Show me the memory of", atlas.models.map((each) => [each.id, each.id])),
  );
  const control = (name) => form.querySelector(`[name=${name}]`);
  const summary = make("p", { class: "calc-summary", role: "status" });
  const table = make("div", {
    class: "calc-rows calc-scroll", tabindex: "0", role: "region", "aria-label": "What fits",
  });
  const detail = make("section", { "aria-labelledby": "calc-detail" });
  root.append(form, summary, table, detail);

  function showForm() {
    const names = [[AUTO, "the fullest that fits"]]
      .concat(methodsOn(chosen.gpu).map((id) => [id, methods[id].name]));
    control("method").replaceChildren(
      ...names.map(([value, text]) => make("option", { value, text })),
    );
    for (const option of control("batch").options) {
      option.disabled = !predictedShape(chosen.length, Number(option.value));
    }
    for (const [name, value] of Object.entries(chosen)) control(name).value = value;
  }

  function showTable() {
    const { gpu, method, length, batch } = chosen;
    const auto = method === AUTO;
    let fitting = 0;
    let unknown = 0;
    const lines = atlas.models.map(({ id }) => {
      const { fullest, least } = best(gpu, id, length, batch);
      const asked = auto ? fullest : { id: method, row: rowOf(gpu, id, method, length, batch) };
      const fit = auto ? Boolean(fullest) : fits(gpu, id, method, length, batch) === true;
      fitting += fit ? 1 : 0;
      unknown += least ? 0 : 1;
      const name = make("button", {
        type: "button", text: short(id), title: id, on: { click: () => choose({ model: id }) },
        ...(id === chosen.model ? { "aria-current": "true" } : {}),
      });
      const cells = [make("td", {}, name)];
      if (auto) {
        cells.push(make("td", { text: fit ? methods[asked.id].name : least ? "nothing fits" : "–" }));
        cells.push(make("td", { class: "calc-number", text: fit ? gb(asked.row.needs) : "–" }));
        const says = least ? `${gb(least.row.needs)} (${methods[least.id].name})` : "not predicted";
        cells.push(make("td", { text: says }));
      } else {
        const says = asked.row ? (fit ? "fits" : "does not fit") : notPredicted(id, method);
        cells.push(make("td", { text: says }));
        cells.push(make("td", { class: "calc-number", text: asked.row ? gb(asked.row.needs) : "–" }));
      }
      const named = [fit ? "" : "calc-no", id === chosen.model ? "calc-chosen" : ""];
      return make("tr", { class: named.join(" ").trim(), "data-model": id }, ...cells);
    });
    const heads = auto
      ? ["Model", "Fullest method that fits", "It needs", "The least that any method needs"]
      : ["Model", methods[method].name, "It needs"];
    // The rows are made anew: what a keyboard stood on must not be lost.
    const before = table.scrollTop;
    const focused = table.contains(document.activeElement) && document.activeElement !== table;
    table.replaceChildren(make("table", {},
      make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", text })))),
      make("tbody", {}, ...lines)));
    table.scrollTop = before;
    if (focused) table.querySelector("[aria-current]").focus({ preventScroll: true });
    const how = auto ? "can be trained" : `can be trained with ${methods[method].name}`;
    const each = batch === 1 ? "one example" : `${batch} examples`;
    const rest = unknown ? ` For ${unknown} of the models, there is no prediction here.` : "";
    summary.textContent =
      `On your ${gpus[gpu].name}, ${fitting} of these ${atlas.models.length} models ${how}, ` +
      `with ${each} of ${tokens(length)} tokens in a batch.${rest}`;
  }

  /* Why there is no number: too long for the model, or too large for every GPU of the kind. */
  function notPredicted(model, method) {
    const { gpu, length, batch } = chosen;
    const other = atlas.methods.some(({ id }) => id !== method &&
      rowOf(gpu, model, id, length, batch));
    return other ? "far too large" : "not predicted";
  }

  // --- where the memory goes --------------------------------------------------------------------

  const GAPS = "gaps";
  const CONTEXT = "CUDA context";
  const about = {
    ...atlas.kinds,
    [GAPS]: "what PyTorch has taken from the GPU and cannot use at the peak",
    [CONTEXT]: "what CUDA itself takes on the GPU, before any tensor",
  };

  function parts(gpu, row) {
    const own = kinds.map((kind) => [kind, row.kinds[kind]]);
    const used = own.reduce((sum, [, size]) => sum + size, 0);
    return [...own, [GAPS, Math.max(0, row.reserved - used)], [CONTEXT, gpus[gpu].context]];
  }

  function paint(element, kind) {
    if (kind === GAPS) element.classList.add("calc-gaps");
    else if (kind === CONTEXT) element.classList.add("calc-context");
    else element.style.background = atlas.colours[kind];
    return element;
  }

  function bar(method, row, scale, isChosen) {
    const { gpu } = chosen;
    const limit = gpus[gpu].total;
    const fit = row.reserved <= gpus[gpu].usable;
    const track = make("div", { class: "calc-track" });
    for (const [kind, size] of parts(gpu, row)) {
      const piece = paint(make("i", { title: `${kind}: ${gb(size)}` }), kind);
      piece.style.width = `${(100 * size) / scale}%`;
      track.append(piece);
    }
    const line = make("span", { class: "calc-limit" });
    line.style.left = `${(100 * limit) / scale}%`;
    track.append(line);
    const beyond = row.needs > scale ? " (longer than the picture)" : "";
    const said = `${gb(row.needs)}, ${fit ? "fits" : "does not fit"}${beyond}`;
    const listed = parts(gpu, row).map(([kind, size]) => `${kind} ${gb(size)}`).join(", ");
    track.setAttribute("role", "img");
    track.setAttribute("aria-label", `${methods[method].name}: ${said}. ${listed}.`);
    return make("div", { class: `calc-bar${isChosen ? " calc-chosen" : ""}`, "data-method": method },
      make("p", {}, make("span", { text: methods[method].name }), make("span", { text: said })),
      track);
  }

  const python = (value) =>
    value === null ? "None" : value === true ? "True" : value === false ? "False"
      : JSON.stringify(value);

  function code(method) {
    const { gpu, model, length, batch } = chosen;
    const old = gpus[gpu].class === "older";
    const options = { dtype: old ? "float16" : "bfloat16", ...methods[method].options };
    if (options.mixed_precision) options.mixed_precision = old ? "fp16" : "bf16";
    const given = { ...options, batch_size: batch, seq_len: length };
    const lines = Object.entries(given).map(([name, value]) => `    ${name}=${python(value)},`);
    return [
      "from course_utils.memory import Setup, predict",
      "",
      "setup = Setup(",
      `    ${python(model)},`,
      ...lines,
      ")",
      `print(predict(setup, ${python(gpu)}).process_mb)`,
    ].join("\n");
  }

  function showDetail() {
    const { gpu, model, length, batch } = chosen;
    const rows = methodsOn(gpu)
      .map((id) => [id, rowOf(gpu, model, id, length, batch)])
      .filter(([, row]) => row);
    const { fullest, least } = best(gpu, model, length, batch);
    const auto = fullest || least;
    const method = chosen.method === AUTO ? auto && auto.id : chosen.method;
    const heading = make("h2", {
      id: "calc-detail", text: `Where the memory goes: ${short(model)} on ${a(gpu)}`,
    });
    detail.replaceChildren(heading);
    if (!rows.length) {
      const shorter = methodsOn(gpu).some((id) => rowOf(gpu, model, id, lengths[0], 1));
      detail.append(make("p", { text: !shorter ? "Nothing is predicted for this model here yet."
        : "There is no prediction: the model cannot read so many tokens at once, or it is far " +
          "too large for every GPU of this kind." }), link());
      return;
    }
    const row = rowOf(gpu, model, method, length, batch);
    const limit = gpus[gpu].total;
    const scale = Math.max(limit * 1.25, row ? row.needs * 1.03 : 0);
    detail.append(make("p", { text:
      "Each bar is one method at the moment when it needs the most memory. The upright line is " +
      `what one program can have of this GPU: ${gb(limit)}. A bar that ends left of the line fits.`,
    }));
    const legend = make("ul", { class: "calc-legend" });
    for (const kind of Object.keys(about)) {
      legend.append(make("li", {}, paint(make("span", {}), kind), kind));
    }
    const bars = make("div", { class: "calc-bars" });
    for (const [id, each] of rows) bars.append(bar(id, each, scale, id === method));
    detail.append(legend, bars);
    const missing = methodsOn(gpu).filter((id) => !rows.some(([there]) => there === id));
    if (missing.length) {
      const names = missing.map((id) => methods[id].name).join("; ");
      detail.append(make("p", { class: "calc-note", text:
        `Not drawn, because it is too large for every GPU of this kind: ${names}.` }));
    }
    if (row) {
      const fit = row.reserved <= gpus[gpu].usable;
      detail.append(
        make("h3", { text: methods[method].name }),
        make("p", { text: methods[method].about }),
        make("p", { text: fit
          ? `It needs ${gb(row.needs)} of ${gb(limit)} and fits.`
          : `It needs ${gb(row.needs)}, and the GPU has ${gb(limit)}: it does not fit.` }),
        numbers(row),
        make("p", { text:
          `The peak comes in the ${phaseName(row.phase)}.` }),
        ...row.warnings.map((said) => make("p", { class: "calc-note", text: said })),
        make("p", { text: "To predict it yourself, with settings of your own:" }),
        make("pre", {}, make("code", { text: code(method) })),
      );
    }
    detail.append(link());
  }

  const phaseName = (phase) => ({
    forward: "forward pass", backward: "backward pass", optimizer: "optimizer's step",
    loading: "loading of the model", weights: "loading of the model",
  }[phase] || phase);

  function numbers(row) {
    const lines = parts(chosen.gpu, row).map(([kind, size]) => make("tr", {},
      make("td", {}, paint(make("span", { class: "calc-key" }), kind), kind),
      make("td", { class: "calc-number", text: size < 100 ? `${size.toFixed(0)} MB` : gb(size) }),
      make("td", { text: about[kind] })));
    const heads = ["What", "How much", "What it is"];
    return make("div", { class: "calc-scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", text })))),
      make("tbody", {}, ...lines)));
  }

  function link() {
    const anchor = make("a", { class: "calc-link", href: hashOf(chosen), text: "this link" });
    const button = make("button", { type: "button", class: "calc-copy", text: "Copy the link" });
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Copy it from the address bar";
      }
    });
    return make("p", {}, "To show your choice to others, send them ", anchor, ". ", button);
  }

  function show() {
    showForm();
    showTable();
    showDetail();
  }

  const versions = Object.entries(atlas.versions).map(([name, version]) => `${name} ${version}`);
  root.append(make("p", { class: "calc-note calc-versions", text:
    `All numbers are predictions, made for ${versions.join(", ")}.` }));
  const plain = document.getElementById("calculator-table");
  if (plain) plain.hidden = true;
  window.addEventListener("hashchange", () => {
    const given = fromHash();
    if (given) {
      chosen = valid(given);
      show();
    }
  });
  chosen = valid(fromHash() || first);
  show();
  window.gpuCalculator = { fits, rowOf, methodsOn, chosen: () => ({ ...chosen }) };
})();
