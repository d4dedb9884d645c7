"""Shared code of the course "Visual Recognition with Fashion Dataset": import the module you need.

from fashionlib import images, models

| module | holds |
|---|---|
| `runtime` | folders, device, precision, seeding, progress |
| `catalogue` | `styles.csv` to a tidy table: parsing, six classes, duplicate groups, the split |
| `synthetic` | draws the embedded catalogue, with ground-truth masks |
| `images` | decode and resize once into memory-mapped arrays; batches on a device |
| `classifier` | build, fit, predict, evaluate |
| `saliency` | guided backpropagation, class averages, faithfulness |
| `dcgan` | generator, discriminator, fit, sample, distances |
| `plots` | every figure |
| `artifacts` | weights, metrics and settings: the hand-over between chapters |
"""
