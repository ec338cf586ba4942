// Limits of restarts, debouncing and timeouts.

/** Allows at most `most` restarts `withinMs`. */
export class Limiter {
  private times: number[] = [];

  constructor(private readonly most: number, private readonly withinMs: number, private readonly now = Date.now) {}

  allows(): boolean {
    const now = this.now();
    this.times = this.times.filter((time) => now - time < this.withinMs);
    return this.times.length < this.most && this.times.push(now) > 0;
  }

  forget(): void {
    this.times = [];
  }
}

/** Debounce: a function that runs `work` once after calls within `delayMs`, and never twice at the same time. */
export function coalesced(work: () => Promise<void>, delayMs: number): () => void {
  let timer: NodeJS.Timeout | undefined;
  let running = Promise.resolve();
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => { running = running.then(work).catch(() => undefined); }, delayMs); // work reports its failures
  };
}

/** The result of `work`. Throws if it takes longer than `ms`. */
export async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => { reject(new Error(`no answer within ${String(ms / 1000)} s`)); }, ms);
  });
  return await Promise.race([work, late]).finally(() => { clearTimeout(timer); });
}
