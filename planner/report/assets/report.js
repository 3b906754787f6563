// Draws each chart on its own: one that fails says so in its place and leaves the others alone.
(function () {
  "use strict";
  function draw(figure) {
    var note = figure.querySelector(".chart-note");
    function fail(error) {
      note.textContent = "This chart could not be drawn (" + error + "). " +
        "Its numbers are in the tables of this page.";
      note.classList.add("chart-error");
      note.hidden = false;
    }
    try {
      var spec = JSON.parse(figure.querySelector("script").textContent);
      window.vegaEmbed(figure.querySelector(".chart"), spec, {
        mode: "vega-lite",
        renderer: "svg",
        actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
        downloadFileName: figure.id
      }).then(function () {
        note.hidden = true;
        figure.classList.add("drawn");
      }).catch(fail);
    } catch (error) {
      fail(error);
    }
  }
  document.querySelectorAll("figure.figure").forEach(draw);
}());
