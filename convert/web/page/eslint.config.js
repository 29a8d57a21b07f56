/** @file ESLint for the page: the recommended rules, and those that catch mistakes the types don't. */

import js from "@eslint/js";

/** @param {string[]} names */
const readonly = (names) => Object.fromEntries(names.map((name) => [name, "readonly"]));

const BOTH = [
  "AbortController", "AbortSignal", "Blob", "DOMException", "DecompressionStream", "Event", "EventTarget", "File",
  "FileReader", "ImageBitmap", "ImageData", "ImageDecoder", "MessageChannel", "OffscreenCanvas", "Response", "Request",
  "Headers", "ReadableStream", "TextDecoder", "TextEncoder", "URL", "URLSearchParams", "WebAssembly", "Worker",
  "atob", "btoa", "caches", "clearInterval", "clearTimeout", "console", "createImageBitmap", "crypto", "fetch",
  "indexedDB", "navigator", "performance", "queueMicrotask", "self", "setInterval", "setTimeout", "structuredClone",
];
const PAGE = [
  "CSS", "ClipboardItem", "CustomEvent", "DOMMatrix", "DOMParser", "DataTransfer", "DragEvent", "Element",
  "FocusEvent", "HTMLButtonElement", "HTMLCanvasElement", "HTMLDialogElement", "HTMLElement", "HTMLImageElement",
  "HTMLInputElement", "HTMLSelectElement", "HTMLVideoElement", "IDBDatabase", "IDBKeyRange", "IDBRequest", "Image",
  "InputEvent", "IntersectionObserver", "KeyboardEvent", "MediaStream", "MouseEvent", "MutationObserver", "Node",
  "Path2D", "PointerEvent", "ResizeObserver", "SVGElement", "TouchEvent", "WheelEvent", "XMLSerializer",
  "cancelAnimationFrame", "confirm", "document", "getComputedStyle", "history", "localStorage", "location",
  "matchMedia", "requestAnimationFrame", "requestIdleCallback", "sessionStorage", "window",
];
const WORKER = ["importScripts", "postMessage", "onmessage", "close"];

export default [
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2022, sourceType: "module", globals: readonly([...BOTH, ...PAGE]) },
    rules: {
      "consistent-return": "error",
      curly: ["error", "multi-line"],
      "max-len": ["error", { code: 120 }],
      eqeqeq: ["error", "always"],
      "no-console": ["error", { allow: ["error", "warn"] }],
      "no-implicit-coercion": "error",
      "no-shadow": "error",
      "no-unused-vars": ["error", { argsIgnorePattern: "^_" }],
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
    },
  },
  { files: ["js/worker.js"], languageOptions: { globals: readonly([...BOTH, ...WORKER]) } },
  { files: ["sw.js"], languageOptions: { sourceType: "script", globals: readonly([...BOTH, ...WORKER]) } },
];
