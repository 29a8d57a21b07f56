"""Scoring promptable segmentation: one protocol for every model, export and file of masks.

photos       what is scored: photos with instances, read ahead, and what of them can't be used
protocol     ``exact`` and ``published``: where prompts start, where refinement points lie, what is compared
systems      what is scored: our models, ONNX pairs, files of masks
prompted     ground-truth prompts: overlap by instance and round (the paper's Tables 2 and 3)
detections   a detector's boxes: masks, average precision (Table 4)
efficiency   parameters, operations, rates (Table 1)
rows         results on disk as they come, so that a stopped run goes on
summary, report, sheet, paper, compare       what people read
"""
