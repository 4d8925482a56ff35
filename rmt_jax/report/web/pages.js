"use strict";
// One of the questions of an inspection at a time.
(function () {
  const views = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("view"), choice = document.getElementById("question");
  views.forEach((view, k) => choice.append(rmt.element("option", { value: k, text: view.title })));
  choice.parentElement.hidden = views.length < 2;
  choice.addEventListener("change", () => rmt.show(views[Number(choice.value)], root));
  rmt.show(views[0], root);
})();
