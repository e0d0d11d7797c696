"use strict";
// Tables get buttons, and each subject its maps of heads. Texts of files are only ever set as text.
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const draw = (tag, attributes = {}, text = "") => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };

  // Tables

  const rowsOf = (table) => [...table.querySelectorAll("tbody tr")].map((row) => [...row.cells]);
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const csvOf = (table) => {
    const headings = JSON.parse(table.dataset.csv);
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent);
    const widths = names.map((name) => headings.filter((heading) => [name, `${name} lower`, `${name} upper`].includes(heading)).length);
    const lines = rowsOf(table).map((cells) =>
      cells.flatMap((cell, place) => {
        const values = cell.dataset.values === undefined ? [cell.textContent] : cell.dataset.values.split(" ");
        return [...values, ...Array(Math.max(0, widths[place] - values.length)).fill("")];
      }),
    );
    return [headings, ...lines].map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
  };
  const download = (text, name) => {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const copy = async (table, button) => {
    const lines = [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent).join("\t"));
    try {
      await navigator.clipboard.writeText(lines.join("\n"));
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(table);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };
  for (const [number, table] of document.querySelectorAll("table[data-csv]").entries()) {
    const name = table.caption.textContent;
    const file = `${String(number + 1).padStart(2, "0")}-${name.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 50)}.csv`;
    const copying = make("button", { type: "button", "aria-label": `Copy table: ${name}` }, "Copy");
    copying.addEventListener("click", () => copy(table, copying));
    const saving = make("button", { type: "button", "aria-label": `Download table as CSV: ${name}` }, "CSV");
    saving.addEventListener("click", () => download(csvOf(table), file));
    table.closest(".table").append(make("div", { class: "tools" }, copying, saving));
  }

  // Packs: value = low + code * unit, the largest code for none

  const codesOf = (pack) => {
    const bytes = Uint8Array.from(atob(pack.data), (letter) => letter.charCodeAt(0));
    if (pack.bytes !== 2) return bytes;
    const view = new DataView(bytes.buffer);
    return Uint16Array.from({ length: bytes.length / 2 }, (_, place) => view.getUint16(2 * place, true));
  };
  const valuesOf = (pack) => {
    if (!pack.values) {
      const none = 256 ** pack.bytes - 1;
      pack.values = Float64Array.from(codesOf(pack), (code) => (code === none ? NaN : pack.low + code * pack.unit));
    }
    return pack.values;
  };
  const at = (pack, ...places) => {
    let index = 0;
    places.forEach((place, axis) => (index = index * pack.shape[axis] + Math.min(place, pack.shape[axis] - 1)));
    return index;
  };
  const said = (value, unit) => {
    if (Number.isNaN(value)) return "no value";
    if (value === 0) return "0";
    const digits = unit > 0 ? Math.max(0, Math.min(6, Math.ceil(-Math.log10(unit)))) : 2;
    return value.toFixed(digits);
  };

  // Colours

  const channels = (colour) => [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
  const mixed = (stops, share) => {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    return stops[first].map((channel, i) => Math.round(channel + (place - first) * (stops[first + 1][i] - channel)));
  };
  const linear = (channel) => (channel <= 10.3 ? channel / 3294.6 : ((channel / 255 + 0.055) / 1.055) ** 2.4);
  const isBright = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue) > 0.179;

  class Heads {
    constructor(place, data) {
      this.data = data;
      this.stops = data.colours.map(channels);
      this.chosen = { measure: 0, region: data.arms[0].regions[0].name, step: -1, seeds: data.arms.map(() => 0) };
      if (data.arms.some((arm) => arm.regions.some((region) => region.name === "prefix_block"))) this.chosen.region = "prefix_block";
      this.maps = data.arms.map((arm, number) => this.map(arm, number));
      this.detail = make("div", { class: "detail", "aria-live": "polite" }, make("p", {}, "Choose a head (click, or Enter) to see its spectrum."));
      place.append(this.controls(), this.legend(), make("div", { class: "maps" }, ...this.maps.map((map) => map.place)), this.detail);
      place.hidden = false;
      this.fill();
    }

    get measure() {
      return this.data.measures[this.chosen.measure];
    }

    get step() {
      const steps = this.measure.steps;
      return this.chosen.step < 0 ? steps.length - 1 : Math.min(this.chosen.step, steps.length - 1);
    }

    region(arm) {
      return this.data.arms[arm].regions.findIndex((region) => region.name === this.chosen.region);
    }

    controls() {
      const select = (label, options, chosen, change) => {
        const box = make("select", { "aria-label": label }, ...options.map(([value, words]) => make("option", { value }, words)));
        box.value = chosen;
        box.addEventListener("change", () => (change(box.value), this.fill()));
        return make("label", {}, label, box);
      };
      const regions = new Map(this.data.arms.flatMap((arm) => arm.regions.map((region) => [region.name, region.words])));
      const parts = [
        select("Measure", this.data.measures.map((one, number) => [String(number), one.words]), "0", (value) => (this.chosen.measure = Number(value))),
        select("Part of the matrix", [...regions], this.chosen.region, (value) => (this.chosen.region = value)),
      ];
      const count = Math.max(...this.data.measures.map((one) => one.steps.length));
      if (count > 1) {
        const slider = make("input", { "aria-label": "Checkpoint", type: "range", min: 0, max: count - 1, value: count - 1, step: 1 });
        this.stepWords = make("span");
        slider.addEventListener("input", () => ((this.chosen.step = Number(slider.value)), this.fill()));
        this.slider = slider;
        parts.push(make("label", {}, this.stepWords, slider));
      }
      return make("div", { class: "choose" }, ...parts);
    }

    legend() {
      this.low = make("span");
      this.high = make("span");
      this.words = make("span");
      const strip = make("canvas", { width: 192, height: 1, "aria-hidden": "true" });
      const context = strip.getContext("2d");
      for (let x = 0; x < 192; x += 1) {
        context.fillStyle = `rgb(${mixed(this.stops, x / 191).join(",")})`;
        context.fillRect(x, 0, 1, 1);
      }
      return make("div", { class: "scale" }, this.low, strip, this.high, this.words);
    }

    map(arm, number) {
      const title = make("h3", {}, `${arm.name} (${arm.mask})`);
      const head = make("div", { class: "map-head" }, title);
      if (arm.seeds.length > 1) {
        const box = make("select", {}, ...arm.seeds.map((seed, place) => make("option", { value: place }, `seed ${seed}`)));
        box.setAttribute("aria-label", `Seed of ${arm.name}`);
        box.addEventListener("change", () => ((this.chosen.seeds[number] = Number(box.value)), this.fill()));
        head.append(box);
      }
      const labels = make("tr", {}, make("th", { scope: "col" }, "layer"), ...arm.heads.map((name) => make("th", { scope: "col", "aria-label": `head ${name}` }, String(name))));
      const cells = arm.layers.map((layer, row) => arm.heads.map((name, column) => this.cell(number, row, column)));
      const body = cells.map((row, place) => make("tr", {}, make("th", { scope: "row", "aria-label": `layer ${arm.layers[place]}` }, String(arm.layers[place])), ...row.map((cell) => make("td", {}, cell))));
      const table = make("table", { role: "grid", "aria-label": `Heads of ${arm.name}, a row for each layer` }, make("thead", {}, labels), make("tbody", {}, ...body));
      cells[0][0].tabIndex = 0;
      const readout = make("p", { class: "readout" });
      const large = arm.heads.length <= 8 ? "map large" : "map";
      return { place: make("div", { class: large }, head, make("div", { class: "scroll" }, table), readout), cells, readout, values: [] };
    }

    cell(arm, row, column) {
      const button = make("button", { type: "button", "aria-pressed": "false" });
      button.tabIndex = -1;
      button.addEventListener("mouseenter", () => this.tell(arm, row, column));
      button.addEventListener("focus", () => this.tell(arm, row, column));
      button.addEventListener("click", () => this.choose(arm, row, column));
      button.addEventListener("keydown", (event) => this.move(event, arm, row, column));
      return button;
    }

    move(event, arm, row, column) {
      const { cells } = this.maps[arm];
      const last = [cells.length - 1, cells[0].length - 1];
      const to = {
        ArrowUp: [row - 1, column],
        ArrowDown: [row + 1, column],
        ArrowLeft: [row, column - 1],
        ArrowRight: [row, column + 1],
        Home: [event.ctrlKey ? 0 : row, 0],
        End: [event.ctrlKey ? last[0] : row, last[1]],
      }[event.key];
      if (!to) return;
      event.preventDefault();
      const target = cells[Math.min(Math.max(to[0], 0), last[0])][Math.min(Math.max(to[1], 0), last[1])];
      cells.flat().forEach((cell) => (cell.tabIndex = -1));
      target.tabIndex = 0;
      target.focus();
    }

    fill() {
      const packs = this.data.arms.map((_, arm) => this.measure.maps[arm]?.[this.region(arm)]);
      let [low, high] = [Infinity, -Infinity];
      for (const pack of packs) if (pack) for (const value of valuesOf(pack)) if (!Number.isNaN(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
      packs.forEach((pack, arm) => this.fillMap(pack, arm, low, high));
      const unit = Math.max(packs.find((pack) => pack)?.unit ?? 0, (high - low) / 1000);
      this.low.textContent = low <= high ? said(low, unit) : "";
      this.high.textContent = low <= high ? said(high, unit) : "";
      this.words.textContent = `${this.measure.words}, the same scale for all maps and steps`;
      if (this.slider) {
        const words = `step ${this.data.arms[0].steps[this.measure.steps[this.step]].toLocaleString("en")}`;
        this.stepWords.textContent = `Checkpoint: ${words}`;
        this.slider.setAttribute("aria-valuetext", words);
      }
      if (this.selected) this.show();
    }

    fillMap(pack, arm, low, high) {
      const { cells, readout } = this.maps[arm];
      const { layers, heads } = this.data.arms[arm];
      readout.textContent = pack ? "" : "This part of the matrix was not measured for this arm.";
      cells.forEach((line, row) =>
        line.forEach((cell, column) => {
          const value = pack ? valuesOf(pack)[at(pack, this.chosen.seeds[arm], this.step, row, column)] : NaN;
          const known = !Number.isNaN(value);
          const colour = known ? mixed(this.stops, high > low ? (value - low) / (high - low) : 0.5) : null;
          cell.style.backgroundColor = colour ? `rgb(${colour.join(",")})` : "var(--none)";
          cell.style.color = colour && isBright(colour) ? "#000" : "#fff";
          cell.textContent = known && heads.length <= 8 ? said(value, Math.max(pack.unit, 0.01)) : "";
          cell.setAttribute("aria-label", `layer ${layers[row]}, head ${heads[column]}: ${known ? said(value, pack.unit) : "no value"}`);
        }),
      );
    }

    tell(arm, row, column) {
      const found = this.data.arms[arm];
      const pack = this.measure.maps[arm]?.[this.region(arm)];
      if (!pack) return;
      const value = valuesOf(pack)[at(pack, this.chosen.seeds[arm], this.step, row, column)];
      const hardly = found.untrained[this.region(arm)]?.[row] ? " The loss hardly reaches this layer here." : "";
      const seed = `seed ${found.seeds[this.chosen.seeds[arm]]}`;
      const rounded = pack.unit > 0 ? `, to the nearest ${Number(pack.unit.toPrecision(1))}` : "";
      this.maps[arm].readout.textContent =
        `Layer ${found.layers[row]}, head ${found.heads[column]} (${seed}): ${this.measure.words} ${said(value, pack.unit)}, ` +
        `mean over ${found.sequences} ${found.sequences === 1 ? "sequence" : "sequences"}${rounded}.${hardly}`;
    }

    choose(arm, row, column) {
      if (this.selected) this.maps[this.selected.arm].cells[this.selected.row][this.selected.column].setAttribute("aria-pressed", "false");
      this.selected = { arm, row, column };
      const { cells } = this.maps[arm];
      cells.flat().forEach((cell) => (cell.tabIndex = -1));
      cells[row][column].tabIndex = 0;
      cells[row][column].setAttribute("aria-pressed", "true");
      this.show();
    }

    show() {
      const { arm, row, column } = this.selected;
      const found = this.data.arms[arm];
      const seed = this.chosen.seeds[arm];
      const words = found.regions[this.region(arm)]?.words ?? "";
      const title = make("h3", {}, `${found.name}, seed ${found.seeds[seed]}: layer ${found.layers[row]}, head ${found.heads[column]}, ${words}, step ${found.steps.at(-1)}`);
      const parts = make("div", { class: "parts" });
      const spectrum = this.data.spectra?.[arm]?.[this.region(arm)];
      if (spectrum) parts.append(this.spectrum(arm, seed, row, column, spectrum));
      const attention = this.data.attention?.[arm];
      if (attention) parts.append(this.attention(attention, seed, row, column, found));
      if (!attention) parts.append(make("p", {}, "Attention itself was not kept: rankkit spectrum --keep-attention keeps it."));
      this.detail.replaceChildren(title, parts);
    }

    spectrum(arm, seed, row, column, spectrum) {
      const lines = [{ name: "this head", pack: spectrum, look: "c0" }];
      for (const one of this.data.baselines ?? []) if (one.spectra[arm]?.[this.region(arm)]) lines.push({ name: one.name, pack: one.spectra[arm][this.region(arm)] });
      const floors = [0, 1].map((which) => valuesOf(spectrum.floors)[at(spectrum.floors, seed, row, column, which)]);
      const curves = lines.map(({ pack }) => pack.components.map((x, place) => [x, valuesOf(pack.curves)[at(pack.curves, seed, row, column, place)]]).filter(([, y]) => !Number.isNaN(y)));
      const known = floors.filter((floor) => !Number.isNaN(floor));
      const bottom = Math.floor(Math.min(-1, ...known.map((floor) => floor - 1), ...(known.length ? [] : curves.flat().map(([, y]) => y))));
      const right = Math.max(1, ...spectrum.components);
      const box = { left: 42, right: 348, top: 10, bottom: 208 };
      const px = (x) => box.left + ((x - 1) / Math.max(1, right - 1)) * (box.right - box.left);
      const py = (y) => box.top + (Math.max(y, bottom) / bottom) * (box.bottom - box.top);
      const middle = curves[0][Math.floor(curves[0].length / 2)];
      const says = `Singular values over the largest, falling to 1e${middle?.[1].toFixed(1) ?? "?"} at component ${middle?.[0] ?? "?"}; arithmetic floor 1e${floors[0].toFixed(1)}, model floor 1e${floors[1].toFixed(1)}.`;
      const svg = draw("svg", { viewBox: "0 0 360 250", role: "img", "aria-label": says });
      svg.append(draw("rect", { class: "under", x: box.left, y: py(Math.max(...known, bottom)), width: box.right - box.left, height: box.bottom - py(Math.max(...known, bottom)) }));
      for (let y = 0; y >= bottom; y -= Math.ceil(-bottom / 5)) {
        svg.append(draw("line", { class: "s-grid", x1: box.left, x2: box.right, y1: py(y), y2: py(y) }));
        svg.append(draw("text", { x: box.left - 5, y: py(y) + 4, "text-anchor": "end" }, y === 0 ? "1" : `1e${y}`));
      }
      for (const x of [...new Set([1, Math.round((right + 1) / 2), right])]) svg.append(draw("text", { x: px(x), y: box.bottom + 15, "text-anchor": "middle" }, String(x)));
      svg.append(draw("path", { class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
      floors.forEach((floor, which) => {
        if (!Number.isNaN(floor)) svg.append(draw("line", { class: which ? "floor model" : "floor", x1: box.left, x2: box.right, y1: py(floor), y2: py(floor) }));
      });
      const dashes = ["", "6 3", "2 3", "8 3 2 3", "4 4", "1 4"];
      curves.forEach((curve, number) => {
        const d = curve.map(([x, y], place) => `${place ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
        svg.append(draw("path", { class: number ? "curve s-muted" : "curve s-ink", d, "stroke-dasharray": dashes[number % dashes.length], "stroke-width": number ? 1.3 : 2 }));
      });
      svg.append(draw("text", { x: (box.left + box.right) / 2, y: 243, "text-anchor": "middle" }, "component (1 = largest); singular value over the largest"));
      const beside = lines.slice(1).map((line) => line.name);
      const note = `Solid: median over sequences. Dashed and dotted level lines: arithmetic and model floor; in the grey nothing is resolved.${beside.length ? ` Thin: ${beside.map((name, place) => `${name} (${["dashed", "dotted", "dash-dotted", "short dashes", "fine dots"][place % 5]})`).join(", ")}.` : ""}`;
      return make("div", {}, svg, make("p", {}, note));
    }

    attention(pack, seed, row, column, found) {
      pack.codes ??= Uint8Array.from(atob(pack.data), (letter) => letter.charCodeAt(0));
      const [, , , rows, columns] = pack.shape;
      const first = at(pack, seed, row, column) * rows * columns;
      const canvas = make("canvas", { width: columns, height: rows, role: "img", "aria-label": `Attention of layer ${found.layers[row]}, head ${found.heads[column]}: ${rows} blocks of queries by ${columns} blocks of keys` });
      const context = canvas.getContext("2d");
      for (let y = 0; y < rows; y += 1)
        for (let x = 0; x < columns; x += 1) {
          context.fillStyle = `rgb(${mixed(this.stops, pack.codes[first + y * columns + x] / 255).join(",")})`;
          context.fillRect(x, y, 1, 1);
        }
      const [queries, keys] = pack.positions;
      const note = `Attention to the first sequence under the own mask, whole matrix: queries downwards, keys to the right, ${queries} x ${keys} positions in ${rows} x ${columns} blocks. Brighter: a larger share of a query's attention, from 0 to 1 by its square root.`;
      return make("div", {}, canvas, make("p", {}, note));
    }
  }

  for (const place of document.querySelectorAll("[data-heads]")) {
    const source = document.getElementById(`data-${place.dataset.heads}`);
    const data = source && JSON.parse(source.textContent);
    if (!data || !data.arms.length || !data.measures?.length) continue;
    new Heads(place, data);
    document.querySelector(`[data-instead="${place.dataset.heads}"]`).hidden = true;
  }
})();
