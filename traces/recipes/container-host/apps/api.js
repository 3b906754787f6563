// The price and cart service.  Environment: TENANT, SOCKET, CATALOGUE.
'use strict';
const fs = require('fs');
const http = require('http');
const crypto = require('crypto');

const tenant = process.env.TENANT;
const products = new Map(
  JSON.parse(fs.readFileSync(process.env.CATALOGUE, 'utf8')).map((row) => [row.id, row]));
const carts = new Map();
const cartsMax = 500;

function answer(response, status, value) {
  const body = JSON.stringify(value);
  response.writeHead(status, {
    'Content-Type': 'application/json',
    'Content-Length': Buffer.byteLength(body),
    ETag: crypto.createHash('sha1').update(body).digest('hex'),
  });
  response.end(body);
}

http.createServer((request, response) => {
  const [, verb, id, user] = request.url.split('/');
  const product = products.get(Number(id));
  if (verb === 'health') {
    answer(response, 200, { tenant, products: products.size, carts: carts.size });
  } else if (!product) {
    answer(response, 404, { error: 'no such product' });
  } else if (verb === 'price') {
    answer(response, 200, { tenant, sku: product.sku, price_cents: product.price_cents });
  } else if (verb === 'cart' && request.method === 'POST') {
    const cart = carts.get(user) || [];
    carts.delete(user);
    cart.push({ sku: product.sku, at: Date.now() });
    carts.set(user, cart.slice(-10));
    if (carts.size > cartsMax) carts.delete(carts.keys().next().value);
    answer(response, 200, { tenant, user, items: carts.get(user) });
  } else {
    answer(response, 405, { error: 'not allowed' });
  }
}).listen(process.env.SOCKET, () => fs.chmodSync(process.env.SOCKET, 0o777));
