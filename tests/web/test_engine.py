"""The engine in the browser computes what Python computes."""

from __future__ import annotations


def test_first(blank):
    print(
        blank.evaluate("""async () => {
      const t0 = performance.now();
      const { openModel } = await import("/js/session.js");
      const { openPhoto } = await import("/js/photo.js");
      const model = await openModel(location.href, {});
      const t1 = performance.now();
      const photo = await openPhoto(await (await fetch("/examples/scene_1.jpg")).blob(), "scene");
      const e = await model.encode(photo);
      const p = await model.predict(e, {points: [[300, 300, 1]], box: null});
      const m = await model.mask(e, p.logits.subarray(0, 65536/16));
      const all = await model.everything(e, {pointsPerSide: 8});
      return [t1 - t0, performance.now()-t1, model.backend, e, Array.from(p.scores), p.ms, m.area, m.box, all.length];
    }""")
    )
