// Requests to the server of this page. Addresses are relative, so they contain the token of the page's own address.

async function checked(response) {
  if (response.ok) return response;
  let reason = `status ${response.status}`;
  try {
    const text = await response.text();
    reason = response.headers.get("content-type")?.startsWith("application/json") ? JSON.parse(text).error : text;
  } catch {
    // the status is all there is
  }
  throw new Error(reason);
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Start the command again, and open the address that it prints.");
  }
  return checked(response);
}

export async function getJson(path) {
  return (await request(path)).json();
}

export async function getBytes(path) {
  return (await request(path)).arrayBuffer();
}

export async function postJson(path, value) {
  const headers = { "content-type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(value) })).json();
}

export async function postBytes(path, bytes, type = "application/octet-stream") {
  return (await request(path, { method: "POST", headers: { "content-type": type }, body: bytes })).json();
}
