"""Score promptable segmentation: one protocol for every model, export and file of masks.

The command (``python -m edgesam_jax.eval``) and its modules:

job          one evaluation from start to finish: data set, systems, rows on disk, reports
compare      whether two reports differ significantly
heldout      score a model on examples in memory, as a training run does
metrics      mergeable means, mask overlap, trivial baselines

scoring/     photos in, results out
  photos             photos with their instances, read ahead of scoring
  protocol           ``exact`` and ``published``: first prompts, refinement points, the mask to compare with
  systems, device    our models, ONNX pairs and files of masks behind one interface; the compiled functions
  prompted           ground-truth prompts: overlap per instance and round (EdgeSAM, Tables 2 and 3)
  detections         a detector's boxes as prompts: masks for average precision (EdgeSAM, Table 4)
  everything        all masks of a photo, matched with its instances of any category: average recall, best IoU
  average_precision, boundary, ground_truth, results      COCO and LVIS metrics and file formats
  rows               results on disk, photo by photo, so that a stopped run can resume

report/      pages, charts and pictures for people
  summary                        aggregates of a report
  report, settings               the Markdown page and the terminal output
  plots, contact_sheet           charts, and pictures of the worst and of typical cases
  published_numbers              the EdgeSAM paper's tables
  load                           read a report back

efficiency/  parameters, operations, speed and memory (EdgeSAM, Table 1)
"""
