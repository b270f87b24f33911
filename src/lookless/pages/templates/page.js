"use strict";
(function () {
  var slider = document.getElementById("place");
  if (!slider) return;
  var output = document.getElementById("place-said");
  var articles = document.querySelectorAll("[data-place]");
  var marks = document.querySelectorAll("[data-point]");

  function show() {
    articles.forEach(function (article) {
      var here = article.dataset.place === slider.value;
      article.hidden = !here;
      if (here) {
        output.textContent = article.dataset.said;
        slider.setAttribute("aria-valuetext", article.dataset.said);
      }
    });
    marks.forEach(function (mark) {
      mark.classList.toggle("here", mark.dataset.point === slider.value);
    });
  }

  slider.addEventListener("input", show);
  marks.forEach(function (mark) {
    mark.addEventListener("click", function () {
      slider.value = mark.dataset.point;
      show();
    });
  });
  window.addEventListener("beforeprint", show);
  show();
})();
