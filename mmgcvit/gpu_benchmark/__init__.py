"""Benchmark of backbones and of window attention on a GPU, within a time limit: see ``mmgcvit benchmark-gpu``.

:mod:`~mmgcvit.gpu_benchmark.cases` lists what is measured, the most important first;
:mod:`~mmgcvit.gpu_benchmark.measure` measures one case; :mod:`~mmgcvit.gpu_benchmark.run` measures all of them in a
process of their own and writes a JSON file; :mod:`~mmgcvit.gpu_benchmark.table` prints it. Requires torch, timm and
mmengine; mmdet only for its Swin-T.
"""
