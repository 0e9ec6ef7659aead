// As thousands of apps are: no word of everhook in it.
const http = require('http');

const server = http.createServer((request, response) => {
  setTimeout(() => response.end(`ok ${process.pid}\n`), request.url === '/slow' ? 300 : 1);
});
server.listen(Number(process.env.PORT), () => console.log('listening'));
