// A release as a team writes it, with no word of everhook in it. Its file `kind` says what is wrong with it.
const fs = require('fs');
const http = require('http');

const kind = fs.readFileSync('kind', 'utf8').trim();
if (kind === 'exits') process.exit(3);
if (kind === 'hangs') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);

let asked = 0;
http
  .createServer((request, response) => {
    if (request.url !== '/healthz') return setTimeout(() => response.end(`ok ${process.pid}\n`), 1);
    asked += 1;
    response.statusCode = kind === 'sickens' && asked > 1 ? 500 : 200;
    response.end('\n');
  })
  .listen(Number(process.env.PORT));
