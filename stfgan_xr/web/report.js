"use strict";
for (const player of document.querySelectorAll(".player")) {
  const slider = player.querySelector("input");
  const output = player.querySelector("output");
  const button = player.querySelector("button");
  const select = player.querySelector("select");
  const days = JSON.parse(player.dataset.days);
  let timer = null;
  const show = () => {
    const at = Number(slider.value);
    for (const figure of player.querySelectorAll("figure")) {
      figure.classList.toggle("on", figure.dataset.composite === select.value && Number(figure.dataset.at) === at);
    }
    output.textContent = days[at];
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  slider.addEventListener("input", show);
  select.addEventListener("change", show);
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    button.textContent = "Stop";
    timer = setInterval(() => {
      slider.value = (Number(slider.value) + 1) % days.length;
      show();
    }, 400);
  });
  show();
}
for (const swipe of document.querySelectorAll(".swipe")) {
  const slider = swipe.querySelector("input");
  const move = () => swipe.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", move);
  const follow = (event) => {
    if (event.buttons === 0) return;
    const box = swipe.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  };
  swipe.addEventListener("pointerdown", follow);
  swipe.addEventListener("pointermove", follow);
  move();
}
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of closed) one.open = false;
});
