#!/usr/bin/env node
// A named consumer in Node, without packages: runs one effect after the other and acknowledges each.
//
//   usage: node consume.mjs SOCKET NAME
//
// At least once: make `effect` idempotent, or skip the ids that are done.

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
    // The daemon sends a heartbeat every 15 s, so a minute of silence means a lost connection.
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
    // With the generation, the daemon refuses the ack once another reader has taken over.
    await ask('POST', `${consumer}/ack?cursor=${event.cursor}&gen=${generation}`);
  }
}

for (;;) {
  await follow().catch((error) => console.error(`trying again: ${error.message}`));
  await sleep(500 + Math.random() * 1000);
}
