// Limits for restarts: how often, how soon, for how long.

/** Says no to more than `most` restarts `withinMs`. */
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

/** A function that does `work` once, however often it is called within `delayMs`; never twice at the same time. */
export function coalesced(work: () => Promise<void>, delayMs: number): () => void {
  let timer: NodeJS.Timeout | undefined;
  let running = Promise.resolve();
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => { running = running.then(work).catch(() => undefined); }, delayMs); // work says itself what failed
  };
}

/** What `work` gives, if it does so within `ms`. Throws otherwise. */
export async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => { reject(new Error(`no answer within ${String(ms / 1000)} s`)); }, ms);
  });
  return await Promise.race([work, late]).finally(() => { clearTimeout(timer); });
}
