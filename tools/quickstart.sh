#!/usr/bin/env bash
# From nothing to a self-distilled detector in minutes: sets up what is needed, draws a small data
# set, trains an SSSD detector on it from scratch, evaluates it and draws its predictions.
#
#   bash tools/quickstart.sh [--active] [--cpu]    (see setup.sh; everything goes to work_dirs/quickstart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh "$@"
# shellcheck disable=SC1091
[[ " $* " = *' --active '* ]] || . .venv/bin/activate
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"

say() { printf '\033[1m[quickstart]\033[0m %s\n' "$*"; }
config=sssd_retinanet_r18-small_own-data.py
out=work_dirs/quickstart
log="$out/train.log"

say 'drawing a data set'
python tools/make_shapes.py "$out/shapes"

export SSSD_DATA_ROOT="$out/shapes" SSSD_TRAIN_IMG=train SSSD_VAL_IMG=val
export SSSD_IMAGE_SCALE=128x128 SSSD_BATCH_SIZE=8 SSSD_MAX_EPOCHS=28
say "training (about 5 minutes on 2 CPU cores; the whole log is $log)"
rm -rf "$out/run"
started=$SECONDS
if ! mim train mmdet_sssd "$config" --work-dir "$out/run" \
    --cfg-options train_cfg.val_interval=7 2>&1 | tee "$log" |
    grep --line-buffered -oE 'Epoch\(train\) +\[[0-9]+\]\[50/[0-9]+\].* loss: [0-9.]+|coco/bbox_mAP: [0-9.]+'
then
    tail -n 5 "$log" >&2
    exit 1
fi
say "trained in $((SECONDS - started)) s"

say 'evaluating'
mim test mmdet_sssd "$config" --checkpoint "$(cat "$out/run/last_checkpoint")" \
    --work-dir "$out/test" >"$out/test.log" 2>&1 || { tail -n 5 "$out/test.log" >&2; exit 1; }
python tools/draw_predictions.py "$out/run/$config" "$(cat "$out/run/last_checkpoint")" \
    "$out/predictions.png" 2>&1 | tail -n 1

say 'AP on the validation images, averaged over IoU 0.50 to 0.95 unless said otherwise:'
for metric in bbox_mAP bbox_mAP_50 bbox_mAP_75 bbox_mAP_s bbox_mAP_m; do
    grep -oE "coco/$metric: -?[0-9.]+" "$out/test.log" | tail -n 1 | sed 's|coco/||'
done
say "Where everything lies:
  data set      $out/shapes
  predictions   $out/predictions.png  (ground truth left, predictions right)
  checkpoint    $(cat "$out/run/last_checkpoint")
  whole config  $out/run/$config
Next: your own COCO-format data, see README.md."
