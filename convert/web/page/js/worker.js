/** @file The worker. */

export {};
