"""The library under the course "Visual Recognition with Fashion Dataset".

    from fashionlib import images, models, training
    from fashionlib.data import prepare

Ground, which imports nothing above itself:

| module | holds |
|---|---|
| `runtime` | folders, device, precision, processes, progress, `InputError` |
| `artifacts` | hand-over between chapters: metrics, weights, checkpoints |
| `catalogue` | `styles.csv` to a tidy table, the six classes, the split |
| `parameters` | parameters of the chapters: defaults, profiles, check |

`fashionlib.data`, which knows no network:

| module | holds |
|---|---|
| `sources` | where a catalogue lies: folder, zip read in place, Kaggle |
| `decoding` | one file to pixels, and pixels to another size |
| `duplicates` | equal and nearly equal images |
| `prepare` | a catalogue to memory-mapped arrays, index and manifest |
| `synthetic` | draws the embedded catalogue, with masks |

The lessons, one idea a module:

| module | holds |
|---|---|
| `images` | prepared arrays; batches on a device |
| `models` | networks by name, their first weights, features, linear probe |
| `training` | `Recipe`, `fit`, `predict`: one CPU, one GPU, several |
| `evaluation` | accuracy with its interval, kinds of error, calibration |
| `saliency` | guided backpropagation, gradient, Grad-CAM, class averages |
| `faithfulness` | whether to believe a map: randomization, deletion, shares |
| `dcgan` | the two networks, their losses, `fit`, sampling |
| `gan_metrics` | how good generated images are |
| `claims` | the study's nine claims: from metrics to verdicts |
| `plots`, `alt_texts` | figures in one style, and what they show in words |
| `cpu` | what makes a CPU fast |

What builds and checks the course lies in `tools`, which no chapter imports.
"""
