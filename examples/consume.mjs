#!/usr/bin/env node
// A named consumer in Node, without packages: one effect after the other, each acknowledged.
//
//   usage: node consume.mjs SOCKET NAME
//
// At least once: make `effect` idempotent, or skip ids that are done.

import http from 'node:http';
import readline from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const [socketPath, name] = process.argv.slice(2);
const consumer = `/v1/consumers/${name}`;

async function effect(event) {
  console.log(`${event.subject} ${event.data.outcome}`);
}

function request(method, path, body) {
  return new Promise((resolve, reject) => {
    const asked = http.request({ socketPath, method, path, agent: false }, resolve);
    asked.on('error', reject);
    // The daemon speaks at least every 15 s.
    asked.setTimeout(60_000, () => asked.destroy(new Error('the daemon is silent')));
    asked.end(body);
  });
}

async function ask(method, path, body) {
  const answer = await request(method, path, body);
  let text = '';
  for await (const chunk of answer) text += chunk;
  const said = JSON.parse(text);
  if (answer.statusCode >= 300) {
    throw Object.assign(new Error(said.error.message), { code: said.error.code });
  }
  return said;
}

async function follow() {
  await ask('PUT', consumer, JSON.stringify({ start: 'earliest' }));
  const answer = await request('GET', `${consumer}/events?follow=1`);
  if (answer.statusCode !== 200) throw new Error(`HTTP ${answer.statusCode}`);
  let generation;
  for await (const line of readline.createInterface({ input: answer })) {
    const event = JSON.parse(line);
    if (event.type === 'settled.feed.hello') generation = event.data.generation;
    if (event.type === 'settled.feed.superseded' && event.data.by === 'reader') {
      console.error('another reader has taken over');
      process.exit(1);
    }
    if (event.type.startsWith('settled.run.')) await effect(event);
    else if (event.type !== 'settled.feed.bookmark') continue;
    // Saying the generation keeps us from moving a position that is no longer ours.
    await ask('POST', `${consumer}/ack?cursor=${event.cursor}&gen=${generation}`);
  }
}

for (;;) {
  await follow().catch((error) => console.error(`trying again: ${error.message}`));
  await sleep(500 + Math.random() * 1000);
}
