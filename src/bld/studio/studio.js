// What HTML alone cannot do: save a picture, brush a mask, choose a position. One listener each, for the whole page, so
// that nothing has to be attached again when a result takes the place of another.
(() => {
  "use strict";
  const painters = new WeakMap(); // canvas → { undo: [ImageData], row, column }

  const canvasOf = (element) => element.closest(".bld-painter")?.querySelector("canvas");
  const contextOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true });
  const stateOf = (canvas) => {
    if (!painters.has(canvas)) painters.set(canvas, { undo: [], row: 0, column: 0 });
    return painters.get(canvas);
  };
  const all = (canvas) => contextOf(canvas).getImageData(0, 0, canvas.width, canvas.height);

  function remember(canvas) {
    const undo = stateOf(canvas).undo;
    undo.push(all(canvas));
    if (undo.length > 30) undo.shift();
  }

  // Pixels are set whole or not at all: a mask has no half-tones.
  function dab(canvas, x, y, radius) {
    const context = contextOf(canvas);
    context.fillStyle = "#e11d48";
    const top = Math.max(0, Math.floor(y - radius)), bottom = Math.min(canvas.height - 1, Math.ceil(y + radius));
    const left = Math.max(0, Math.floor(x - radius)), right = Math.min(canvas.width - 1, Math.ceil(x + radius));
    for (let row = top; row <= bottom; row++)
      for (let column = left; column <= right; column++)
        if ((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= Math.max(radius, 0.71) ** 2)
          context.fillRect(column, row, 1, 1);
  }

  function place(canvas, event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width,
      ((event.clientY - box.top) / box.height) * canvas.height];
  }

  function stroke(canvas, from, to) {
    const percent = Number(canvas.closest(".bld-painter").querySelector("[data-brush]").value);
    const radius = (percent / 200) * canvas.width;
    const count = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(0.5, radius / 2)));
    for (let i = 0; i <= count; i++)
      dab(canvas, from[0] + ((to[0] - from[0]) * i) / count, from[1] + ((to[1] - from[1]) * i) / count, radius);
  }

  let drawing = null;
  document.addEventListener("pointerdown", (event) => {
    const canvas = event.target;
    if (!canvas.matches?.(".bld-painter canvas")) return;
    remember(canvas);
    canvas.setPointerCapture(event.pointerId);
    drawing = { canvas, last: place(canvas, event) };
    stroke(canvas, drawing.last, drawing.last);
  });
  document.addEventListener("pointermove", (event) => {
    if (!drawing || event.target !== drawing.canvas) return;
    const here = place(drawing.canvas, event);
    stroke(drawing.canvas, drawing.last, here);
    drawing.last = here;
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => { drawing = null; });

  // With the keyboard: positions of the code, as the model fills whole ones.
  function mark(canvas) {
    const { rows, columns } = canvas.closest(".bld-painter").dataset;
    const { row, column } = stateOf(canvas);
    const height = canvas.height / rows, width = canvas.width / columns;
    const box = [column * width, row * height, width, height].map(Math.round);
    const context = contextOf(canvas);
    remember(canvas);
    if (context.getImageData(box[0], box[1], 1, 1).data[3]) context.clearRect(...box);
    else { context.fillStyle = "#e11d48"; context.fillRect(...box); }
  }

  function cursor(canvas) {
    const { rows, columns } = canvas.closest(".bld-painter").dataset;
    const { row, column } = stateOf(canvas);
    let here = canvas.parentElement.querySelector(".bld-here");
    if (!here) {
      here = document.createElement("div");
      here.className = "bld-here";
      here.style.pointerEvents = "none";
      canvas.parentElement.append(here);
    }
    here.style.cssText += `top:${(100 * row) / rows}%;left:${(100 * column) / columns}%;` +
      `height:${100 / rows}%;width:${100 / columns}%`;
  }

  document.addEventListener("keydown", (event) => {
    const canvas = event.target;
    if (!canvas.matches?.(".bld-painter canvas")) return;
    const state = stateOf(canvas), { rows, columns } = canvas.closest(".bld-painter").dataset;
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (move) {
      state.row = Math.min(rows - 1, Math.max(0, state.row + move[0]));
      state.column = Math.min(columns - 1, Math.max(0, state.column + move[1]));
    } else if (event.key === " ") mark(canvas);
    else if (event.key === "Delete" || event.key === "Backspace") act(canvas, "clear");
    else return;
    event.preventDefault();
    cursor(canvas);
  });

  function act(canvas, what) {
    const context = contextOf(canvas), state = stateOf(canvas);
    if (what === "undo") {
      const before = state.undo.pop();
      if (before) context.putImageData(before, 0, 0);
      return;
    }
    remember(canvas);
    const pixels = all(canvas);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (what !== "invert") return;
    context.fillStyle = "#e11d48";
    for (let i = 0; i < canvas.width * canvas.height; i++)
      if (!pixels.data[4 * i + 3]) context.fillRect(i % canvas.width, Math.floor(i / canvas.width), 1, 1);
  }

  document.addEventListener("click", (event) => {
    const tool = event.target.closest?.("[data-paint]");
    if (tool) act(canvasOf(tool), tool.dataset.paint);
    const save = event.target.closest?.("[data-save]");
    if (save) {
      const link = document.createElement("a");
      link.href = save.querySelector("img").src;
      link.download = save.dataset.save;
      link.click();
    }
    const example = event.target.closest?.("[data-example]");
    if (example) use(example);
  });

  // A picture that was kept from the training goes the way of an upload.
  async function use(example) {
    const panel = example.closest(".bld-upload");
    const remove = () => panel.querySelector('button[aria-label="Clear"], button[aria-label="Remove Image"]');
    remove()?.click();
    do await new Promise((done) => setTimeout(done, 50));
    while (remove() || !panel.querySelector("input[type=file]"));
    const input = panel.querySelector("input[type=file]"), files = new DataTransfer();
    const picture = await (await fetch(example.querySelector("img").src)).blob();
    files.items.add(new File([picture], example.dataset.example, { type: "image/png" }));
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  // Gradio puts the status before the sentence of a refused upload: "HTTP 415: The file cannot be read …".
  new MutationObserver((changes) => {
    for (const change of changes)
      for (const added of change.addedNodes) {
        if (!added.parentElement?.closest(".toast-wrap")) continue;
        const texts = document.createTreeWalker(added, NodeFilter.SHOW_TEXT);
        for (let text = texts.currentNode; text; text = texts.nextNode())
          if (/^HTTP \d{3}: /.test(text.data ?? "")) text.data = text.data.replace(/^HTTP \d{3}: /, "");
      }
  }).observe(document.documentElement, { childList: true, subtree: true });

  // Where controls and result stand below each other, a started work is scrolled to.
  document.addEventListener("click", (event) => {
    const run = event.target.closest?.("[id^=bld-run-]");
    if (run && window.innerWidth < 800)
      run.closest("[role=tabpanel]")?.querySelector(".bld-output")?.scrollIntoView({ behavior: "smooth" });
  });

  window.bldStudio = {
    // The mask that is brushed, white on black, as a PNG; "" where there is no picture.
    mask() {
      const canvas = document.querySelector(".bld-painter canvas");
      if (!canvas) return "";
      const sheet = document.createElement("canvas");
      sheet.width = canvas.width;
      sheet.height = canvas.height;
      const pixels = all(canvas);
      for (let i = 0; i < pixels.data.length; i += 4) {
        pixels.data.fill(pixels.data[i + 3] ? 255 : 0, i, i + 3);
        pixels.data[i + 3] = 255;
      }
      contextOf(sheet).putImageData(pixels, 0, 0);
      return sheet.toDataURL("image/png");
    },
    // A click on a board, told to the server as row and column from 1.
    choose(event, trigger) {
      const board = event.target.closest(".bld-choose");
      if (!board) return;
      const box = board.getBoundingClientRect(), { rows, columns } = board.dataset;
      const at = (part, count) => Math.min(count, Math.max(1, Math.ceil(part * count)));
      const row = at((event.clientY - box.top) / box.height, Number(rows));
      const column = at((event.clientX - box.left) / box.width, Number(columns));
      this.place(row, column);
      trigger("click", { row, column });
    },
    // Shows on the board which position is chosen.
    place(row, column) {
      const board = document.querySelector(".bld-choose");
      if (!board) return;
      const { rows, columns } = board.dataset, here = board.querySelector(".bld-here");
      here.style.top = `${(100 * (row - 1)) / rows}%`;
      here.style.left = `${(100 * (column - 1)) / columns}%`;
    },
  };
})();
