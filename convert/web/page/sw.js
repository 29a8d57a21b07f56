/** @file The service worker. */
"use strict";
