// The llama.cpp arm of bench/coder.py: reads one JSON request a line, writes one JSON answer a line.
// usage: node bench/coder_llama.mjs FILE.gguf THREADS CONTEXT; node-llama-cpp is found through NODE_PATH's folder in PEERS.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";
import readline from "node:readline";

const [file, threads, size] = process.argv.slice(2);
const require = createRequire(process.env.PEERS + "/package.json");
const {getLlama} = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

let started = performance.now();
const llama = await getLlama({gpu: false, build: "never", maxThreads: Number(threads), logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: Number(size), batchSize: 512, threads: Number(threads), sequences: 1});
const sequence = context.getSequence();
const answer = (value) => process.stdout.write(JSON.stringify(value) + "\n");
answer({load_ms: performance.now() - started, rss_mb: process.memoryUsage().rss / 2 ** 20});

for await (const line of readline.createInterface({input: process.stdin})) {
    const {ids, tokens, keep} = JSON.parse(line);
    if (!keep) await sequence.clearHistory();
    else await sequence.eraseContextTokenRanges([{start: keep, end: sequence.nextTokenIndex}]);
    started = performance.now();
    const made = [];
    let first = 0;
    for await (const token of sequence.evaluate(ids.slice(keep ?? 0), {temperature: 0, yieldEogToken: true})) {
        if (made.length === 0) first = performance.now() - started;
        made.push(token);
        if (made.length >= tokens) break;
    }
    answer({first_ms: first, whole_ms: performance.now() - started, made, rss_mb: process.memoryUsage().rss / 2 ** 20});
}
