"""Runs our benchmarks and llama.cpp's in turns and prints the ratios. Called by llama_cpp_bench.sh, which sets the environment."""

import json
import os
import re
import subprocess
import sys

FORMATS = ["q4_0", "q4_k", "q5_k", "q6_k", "q8_0", "bf16", "f16", "f32"]
LAPIDARY, GGML_BENCH, LLAMA_BENCH = (os.environ[name] for name in ("LAPIDARY", "GGML_BENCH", "LLAMA_BENCH"))
THREADS = sorted({int(word) for word in os.environ["THREADS"].split()})
ROUNDS, SECONDS = int(os.environ["ROUNDS"]), os.environ["SECONDS_EACH"]


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def load():
    return os.getloadavg()[0]


def ours(format, threads):
    document = json.loads(output(LAPIDARY, "bench", "--kernels", "--json", "--filter", format, "--threads", str(threads)))
    return [row for row in document["kernels"] if row["format"] == format and row["threads"] == threads]


def theirs(format, threads):
    tasks = ["matmul"] if format == "f32" else ["encode", "matmul"]
    lines = [line for task in tasks for line in output(GGML_BENCH, task, format, str(threads), SECONDS).splitlines()]
    return [json.loads(line) for line in lines]


def rate(row):
    """Weights a second by the best time; of a product, times its batch."""
    return row["rows"] * row["cols"] * (row["batch"] or 1) / row["min_secs"]


def kernels(formats):
    best = {}
    for format in formats:
        for threads in THREADS:
            for _ in range(ROUNDS):
                for side, run in enumerate((ours, theirs)):
                    for row in run(format, threads):
                        shape = (row["rows"], row["cols"], row["batch"]) if row["batch"] else (0, 0, 0)
                        pair = best.setdefault((row["kernel"], format, *shape, threads), [None, None, ""])
                        pair[side] = max(pair[side] or 0, rate(row))
                        pair[2] = row.get("buffer", pair[2])
    print(f"{'kernel':15} {'format':7} {'shape':>12} {'batch':>5} {'threads':>7} {'ours':>12} {'llama.cpp':>12} {'ratio':>6}  buffer")
    for (kernel, format, rows, cols, batch, threads), (mine, peer, buffer) in sorted(best.items(), key=lambda item: (item[0][0], FORMATS.index(item[0][1]) if item[0][1] in FORMATS else 99, item[0][2:])):
        if not mine or not peer:
            continue
        scale, unit = (2e-9, "GFLOP/s") if batch else (1e-6, "M/s")
        shape = f"{rows}x{cols}" if batch else ""
        print(f"{kernel:15} {format:7} {shape:>12} {batch or '':>5} {threads:>7} {mine * scale:8.1f} {unit:7} {peer * scale:8.1f} {unit:7} {mine / peer:6.2f}  {buffer}")


def models(files):
    print(f"{'file':28} {'threads':>7} {'test':>6} {'ours t/s':>9} {'llama.cpp':>9} {'ratio':>6}   best of {ROUNDS}, load {load():.1f} before")
    for file in files:
        for threads in THREADS:
            mine, peer = {}, {}
            for _ in range(ROUNDS):
                document = json.loads(
                    output(LAPIDARY, "bench", file, "--json", "--threads", str(threads), "--prefill-tokens", "512",
                           "--decode-tokens", "128", "--decode-depth", "0", "--repetitions", "1")
                )
                for test, key in (("pp512", "prefill_tokens_per_second"), ("tg128", "decode_tokens_per_second")):
                    mine[test] = max(mine.get(test, 0), document[key])
                rows = json.loads(output(LLAMA_BENCH, "-m", file, "-p", "512", "-n", "128", "-t", str(threads), "-r", "1", "-o", "json"))
                for row in rows:
                    test = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
                    peer[test] = max(peer.get(test, 0), row["avg_ts"])
            for test in mine:
                print(f"{os.path.basename(file):28} {threads:>7} {test:>6} {mine[test]:9.2f} {peer[test]:9.2f} {mine[test] / peer[test]:6.2f}")


def seconds_between(log, first, last):
    """Time between two lines of llama.cpp's log, which begin with minutes.seconds.milliseconds.microseconds; where its two streams meet, lines do not."""
    stamps = []
    for word in (first, last):
        found = re.search(rf"(\d+)\.(\d\d)\.(\d{{3}})\.(\d{{3}}) \w (?:\w+: )?{word}", log)
        if not found:
            return None
        minutes, seconds, milli, micro = (int(part) for part in found.groups())
        stamps.append(60 * minutes + seconds + milli / 1e3 + micro / 1e6)
    return stamps[1] - stamps[0]


def texts(text, files):
    """Tokens of a text read and scored a second, on both sides without loading the model."""
    context, chunks = int(os.environ["CONTEXT"]), int(os.environ["CHUNKS"])
    scored = chunks * (context - context // 2 - 1)
    print(f"{'file':28} {'threads':>7} {'ours t/s':>9} {'llama.cpp':>9} {'ratio':>6} {'PPL':>10} {'llama.cpp':>10}   best of {ROUNDS}, load {load():.1f} before")
    for file in files:
        for threads in THREADS:
            mine, peer, figures = 0.0, 0.0, [None, None]
            for _ in range(ROUNDS):
                document = json.loads(
                    output(LAPIDARY, "evaluate", file, "--text", text, "--perplexity", "llama.cpp", "--context", str(context),
                           "--tokens", str(scored), "--no-speed", "--threads", str(threads), "--json")
                )
                mine, figures[0] = max(mine, document["text_tokens_per_second"]), document["text"]["perplexity"]
                command = [os.environ["LLAMA_PERPLEXITY"], "-m", file, "-f", text, "-c", str(context), "--chunks", str(chunks), "-t", str(threads)]
                for _ in range(5):  # on a busy machine the tool's asynchronous log now and then loses its last lines
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(done.stderr[-2000:])
                    said = done.stdout + done.stderr
                    took = seconds_between(said, "calculating perplexity", "Final estimate")
                    if took:
                        break
                else:
                    sys.exit("llama-perplexity did not log when it began and ended in five runs")
                peer = max(peer, chunks * context / took)
                figures[1] = float(re.search(r"Final estimate: PPL = ([\d.]+)", said)[1])
            print(f"{os.path.basename(file):28} {threads:>7} {mine:9.1f} {peer:9.1f} {mine / peer:6.2f} {figures[0]:10.4f} {figures[1]:10.4f}")


if __name__ == "__main__":
    task = sys.argv[1] if len(sys.argv) > 1 else ""
    if task == "kernels":
        kernels(sys.argv[2:] or FORMATS)
    elif task == "models":
        models(sys.argv[2:])
    elif task == "texts" and len(sys.argv) > 3:
        texts(sys.argv[2], sys.argv[3:])
    else:
        sys.exit("usage: llama_cpp_bench.sh kernels [FORMAT…] | models FILE.gguf… | texts TEXT FILE.gguf…")
