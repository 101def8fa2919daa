/** Options of the reconnect rule. Times are milliseconds. */
export interface BackoffOptions {
  /** Longest wait that it chooses by itself. */
  cap?: number;
  /** Longest wait that a server may ask for. */
  maxHint?: number;
  /** Number of 1011 in a row that is the last. */
  maxCrashes?: number;
  /** More close codes to retry. */
  retry?: Iterable<number>;
  /** A number from 0 to 1. */
  random?: () => number;
  /** Monotonic time. */
  now?: () => number;
}

/** The reconnect rule, for any client. */
export class Backoff {
  constructor(options?: BackoffOptions);
  /** Note that the server accepted. This alone resets nothing. */
  opened(): void;
  /** Note a message from the server. */
  received(): void;
  /** Return the time until the next attempt, or null to give up. */
  closed(code: number, reason?: string, canRenew?: boolean): number | null;
}

/** Arguments that renew replaces. */
export interface Renewal {
  url?: string | URL;
  protocols?: string | string[];
}

export interface ReconnectingWebSocketOptions {
  protocols?: string | string[];
  binaryType?: BinaryType;
  backoff?: BackoffOptions;
  /** Get new credentials after 3000. */
  renew?: (() => Renewal | null | void | Promise<Renewal | null | void>) | null;
}

/** The end of an attempt. */
export interface ReconnectingCloseEvent extends Event {
  readonly code: number;
  readonly reason: string;
  readonly wasClean: boolean;
  /** Milliseconds until the next attempt, or null if there is none. */
  readonly retryIn: number | null;
  /** Error of renew, in the last event. */
  readonly renewError: unknown;
  /** Error number of a crash, for a report. */
  readonly ref: string | null;
  readonly cause: string | null;
  /** The server's hint in milliseconds. */
  readonly retryAfter: number | null;
}

export interface ReconnectingWebSocketEvents {
  connecting: Event;
  open: Event;
  message: MessageEvent;
  close: ReconnectingCloseEvent;
}

type Listener<E> = ((event: E) => unknown) | { handleEvent(event: E): unknown };

/** A WebSocket that reconnects by the close code. */
export class ReconnectingWebSocket extends EventTarget {
  constructor(url: string | URL, options?: ReconnectingWebSocketOptions);
  readonly state: "connecting" | "open" | "waiting" | "closing" | "closed";
  readonly url: string | URL;
  readonly protocols: string | string[];
  readonly binaryType: BinaryType;
  readonly backoff: Backoff;
  readonly protocol: string;
  send(data: Parameters<WebSocket["send"]>[0]): void;
  /** Close for good. */
  close(code?: number, reason?: string): void;
  addEventListener<K extends keyof ReconnectingWebSocketEvents>(
    type: K,
    listener: Listener<ReconnectingWebSocketEvents[K]> | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof ReconnectingWebSocketEvents>(
    type: K,
    listener: Listener<ReconnectingWebSocketEvents[K]> | null,
    options?: boolean | EventListenerOptions,
  ): void;
}
