// Knows its descriptor, and ends by itself what it has begun.
const http = require('http');

const server = http.createServer((request, response) => response.end(`ok ${process.pid}\n`));
server.listen({ fd: 3 }, () => console.log('listening'));
process.on('SIGTERM', () => server.close());
