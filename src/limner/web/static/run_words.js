// What a run's facts are called: its state as a sentence, times, sizes.
import { fill, t } from "./common.js";

export const LIVE = ["starting", "running", "stopping"];
export const isLive = (run) => LIVE.includes(run.status);

export function statusWord(status) {
  return {
    queued: t("not started"),
    waiting: t("waiting"),
    starting: t("starting"),
    running: t("running"),
    stopping: t("stopping"),
    done: t("finished"),
    failed: t("failed"),
    stopped: t("stopped"),
  }[status];
}

export function stateSentence(run, place) {
  const [done, total] = run.progress;
  if (run.status === "queued") return t("Not started yet.");
  if (run.status === "waiting") {
    return place ? fill(t("Waits in the queue, at place {n}."), { n: place }) : t("Waits in the queue.");
  }
  if (run.status === "done") return t("Finished.");
  if (run.status === "failed") return fill(t("Failed at step {step}."), run);
  if (run.status === "stopped") return fill(t("Stopped at step {step}; what it learnt is saved."), run);
  if (run.asked || run.status === "stopping") return t("Stopping after this step; its work will be saved.");
  if (run.phase === "caching") return fill(t("Preparing pictures: {done} of {total}."), { done, total });
  if (run.phase === "unpacking") return fill(t("Unpacking pictures: {done} of {total} MiB."), { done, total });
  if (run.phase === "painting class pictures") return fill(t("Painting class pictures: {done} of {total}."), { done, total });
  if (run.phase === "validating") return fill(t("Measuring the validation loss: {done} of {total}."), { done, total });
  if (run.phase === "sampling") return fill(t("Painting samples: {done} of {total}."), { done, total });
  if (run.phase === "queued elsewhere") return t("Waits in the queue of the cluster.");
  if (run.phase === "saving") return t("Saving.");
  if (run.phase === "training") return t("Training.");
  return t("Loading the model.");
}

export function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return fill(t("{s} s"), { s });
  if (s < 3600) return fill(t("{m} min {s} s"), { m: Math.floor(s / 60), s: s % 60 });
  return fill(t("{h} h {m} min"), { h: Math.floor(s / 3600), m: Math.floor((s % 3600) / 60) });
}

export function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = bytes / 1024;
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${value.toPrecision(3)} ${units[unit]}`;
}

export const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
export const speed = (perSecond) =>
  perSecond >= 1
    ? fill(t("{n} steps per second"), { n: perSecond.toPrecision(3) })
    : fill(t("{n} s per step"), { n: (1 / perSecond).toPrecision(3) });

const share = (part) => `${part > 0 && part < 0.095 ? Number((part * 100).toPrecision(1)) : Math.round(part * 100)} %`;
const rounded = (value) => Number(value.toPrecision(3)); // 2250, where toPrecision alone says 2.25e+3

// used(meter): what a run gets done and what it waits for, as facts; `meter` is the last report of speed, or null.
export function used(meter) {
  if (!meter?.images_per_second) return [];
  const { images_per_second: images, tflops, utilisation, data_wait: data, host, device } = meter;
  const rate = { n: rounded(tflops ?? 0), share: share(utilisation ?? 0), peak: rounded(meter.peak_tflops ?? 0) };
  const full = meter.peak_source === "measured" ? t("{n} TFLOP/s, {share} of the {peak} measured on the device") : t("{n} TFLOP/s, {share} of the device's {peak}");
  return [
    fill(t("{n} images per second"), { n: rounded(images) }),
    tflops ? fill(utilisation ? full : t("{n} TFLOP/s"), rate) : null,
    device === null ? null : fill(t("time: device {device}, waiting for data {data}, the rest {host}"), { device: share(device), data: share(data), host: share(host) }),
  ];
}

// What could make a run faster; the trainer's own sentences are in engine/hints.py.
export function hintSentence(hint) {
  return {
    "encodes anew": t("Much of the time goes into encoding pictures or captions anew in each step; memory.cache_latents and memory.cache_text keep the results."),
    "waits for data": t("The device waits for pictures to be read. A faster disk for memory.cache_path would help, or ending what else reads from it."),
    "launch-bound": t("The device waits for the computer to tell it what to do (launch-bound). A larger train.batch_size costs little more time."),
    "launched one by one": t("The device waits for the computer to tell it what to do (launch-bound). Set speed.cuda_graph or speed.compile, or a larger train.batch_size, which costs little more time."),
    "room without checkpointing": t("memory.checkpointing costs about a third of the time, and there is room without it."),
  }[hint];
}
