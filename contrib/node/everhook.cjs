// Makes an unmodified Node app part of a replacement without a lost request. Load it before the app:
//
//     env: {"NODE_OPTIONS": "--require /usr/share/everhook/node/everhook.cjs"}
//
// A `listen` on the port or the path of a socket that everhook holds is given that socket, so that the old
// and the new process share it. On SIGTERM such a server accepts no more; what it has accepted is answered,
// with `Connection: close`; connections on which nothing is under way are kept for five seconds, since a
// request may be on its way on them. Then the signal takes its course, unless the app handles it itself.
//
// Without sockets meant for this process, and in workers of the cluster module, it does nothing.
'use strict';

const fs = require('fs');
const http = require('http');
const https = require('https');
const net = require('net');

const IDLE_MS = 5000;
const FIRST_FD = 3;
const LISTENING = '0A';

const held = 'NODE_UNIQUE_ID' in process.env ? new Map() : passedSockets();
if (held.size > 0) {
  const servers = new Set();
  takeOverListen(servers);
  drainOnTerm(servers);
}

// By port or path: the descriptors that were passed to this process (sd_listen_fds(3)).
function passedSockets() {
  const sockets = new Map();
  if (process.env.LISTEN_PID !== String(process.pid)) return sockets;
  const inodes = new Map();
  for (const table of ['tcp', 'tcp6']) {
    for (const row of rows(table)) {
      // sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode
      if (row[3] === LISTENING) inodes.set(row[9], parseInt(row[1].split(':').pop(), 16));
    }
  }
  // Num RefCount Protocol Flags Type St Inode Path
  for (const row of rows('unix')) if (row[7]) inodes.set(row[6], row.slice(7).join(' '));
  for (let n = 0; n < Number(process.env.LISTEN_FDS); n++) {
    const inode = /^socket:\[(\d+)\]$/.exec(fs.readlinkSync(`/proc/self/fd/${FIRST_FD + n}`));
    const where = inode && inodes.get(inode[1]);
    if (where !== null && where !== undefined) sockets.set(where, FIRST_FD + n);
  }
  return sockets;
}

function rows(table) {
  try {
    const lines = fs.readFileSync(`/proc/self/net/${table}`, 'utf8').split('\n').slice(1);
    return lines.filter(Boolean).map((line) => line.trim().split(/\s+/));
  } catch {
    return [];
  }
}

// The port or path that `listen` is asked for.
function wanted(args) {
  const first = args[0];
  const options = first !== null && typeof first === 'object' ? first : { port: first };
  if (options.fd !== undefined || options.handle || options._handle) return undefined;
  if (typeof options.path === 'string') return options.path;
  const port = options.port;
  if (typeof port === 'string' && !/^\d+$/.test(port)) return port;
  return port === undefined || port === null || typeof port === 'function' ? undefined : Number(port);
}

function takeOverListen(servers) {
  const listen = net.Server.prototype.listen;
  net.Server.prototype.listen = function (...args) {
    const fd = held.get(wanted(args));
    if (fd === undefined) return listen.apply(this, args);
    servers.add(follow(this));
    const callback = args.find((arg) => typeof arg === 'function');
    return listen.call(this, { fd }, ...(callback ? [callback] : []));
  };
}

// Knows the connections of a server, and which of them have something under way.
function follow(server) {
  const connections = new Map();
  const answers = new Set();
  let draining = false;
  const isHttp = server instanceof http.Server || server instanceof https.Server;
  const secure = server instanceof https.Server;
  server.prependListener(secure ? 'secureConnection' : 'connection', (socket) => {
    connections.set(socket, { busy: 0, read: 0 });
    socket.once('close', () => connections.delete(socket));
  });
  if (isHttp) {
    server.prependListener('request', (request, response) => {
      const state = connections.get(request.socket) || { busy: 0, read: 0 };
      state.busy++;
      answers.add(response);
      if (draining) closeAfter(response);
      response.once('close', () => {
        state.busy--;
        state.read = request.socket.bytesRead;
        answers.delete(response);
      });
    });
    // Whoever speaks something else from now on ends it himself.
    for (const event of ['upgrade', 'connect']) server.on(event, (_, socket) => connections.delete(socket));
  }
  const drain = (done) => {
    draining = true;
    answers.forEach(closeAfter);
    server.once('close', done);
    // Not the close of http.Server, which ends idle connections at once.
    net.Server.prototype.close.call(server);
    const timer = setTimeout(() => {
      for (const [socket, state] of connections) {
        if (isHttp && state.busy === 0 && socket.bytesRead === state.read) socket.destroy();
      }
    }, IDLE_MS);
    server.once('close', () => clearTimeout(timer));
  };
  // A server that the app has closed is not waited for.
  return { drain: (done) => (server.listening ? drain(done) : done()) };
}

function closeAfter(response) {
  if (!response.headersSent) response.setHeader('Connection', 'close');
}

function drainOnTerm(servers) {
  const onTerm = () => {
    const left = [...servers];
    let open = left.length + 1;
    const done = () => {
      if (--open > 0) return;
      process.removeListener('SIGTERM', onTerm);
      if (process.listenerCount('SIGTERM') === 0) process.kill(process.pid, 'SIGTERM');
    };
    left.forEach((server) => server.drain(done));
    done();
  };
  process.on('SIGTERM', onTerm);
}
