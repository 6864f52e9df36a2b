// Clients of npm against the program: oauth4webapi, and openid-client on top of it.

import assert from 'node:assert/strict'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'

const { SERVER, CLIENT_ID: id, CLIENT_SECRET: secret } = process.env
const metadata = { issuer: SERVER, token_endpoint: `${SERVER}/token` }
const insecure = { [oauth.allowInsecureRequests]: true }

async function control(path, body = {}) {
  const response = await fetch(`${SERVER}/control/${path}`, {
    method: 'POST',
    body: JSON.stringify(body),
  })
  assert.equal(response.status, 200)
}

async function grant(auth, parameters = {}, clientId = id) {
  const client = { client_id: clientId }
  const form = new URLSearchParams(parameters)
  const response = await oauth.clientCredentialsGrantRequest(metadata, client, auth, form, insecure)
  return oauth.processClientCredentialsResponse(metadata, client, response)
}

async function api(token) {
  const url = new URL(`${SERVER}/orders`)
  return oauth.protectedResourceRequest(token, 'POST', url, undefined, 'two chairs', insecure)
}

// oauth4webapi reports a 401 with a challenge as another error than the body of an error.
function refused(status, code) {
  return (error) => {
    assert.equal(error.status ?? error.response?.status, status)
    if (error instanceof oauth.ResponseBodyError) assert.equal(error.error, code)
    else assert.equal(error.cause[0].scheme, 'basic')
    return true
  }
}

for (const method of [oauth.ClientSecretBasic, oauth.ClientSecretPost]) {
  const token = await grant(method(secret), { scope: 'orders.read orders.write' })
  assert.equal(token.token_type, 'bearer')
  assert.equal(token.expires_in, 3600)
  assert.equal(token.scope, 'orders.read orders.write')

  const response = await api(token.access_token)
  assert.equal(response.status, 200)
  assert.equal(await response.text(), 'two chairs')

  await control('revoke', { token: token.access_token })
  await assert.rejects(api(token.access_token), (error) => {
    assert.ok(error instanceof oauth.WWWAuthenticateChallengeError)
    assert.equal(error.cause[0].scheme, 'bearer')
    assert.equal(error.cause[0].parameters.error, 'invalid_token')
    return true
  })

  await assert.rejects(grant(method('wrong')), refused(401, 'invalid_client'))
  await assert.rejects(grant(method(secret), {}, 'unknown'), refused(401, 'invalid_client'))
}

await control('auth/next_once', {
  reply: { oauth_error: { error: 'invalid_scope', description: 'no such scope' } },
})
await assert.rejects(grant(oauth.ClientSecretPost(secret)), (error) => {
  assert.equal(error.error, 'invalid_scope')
  assert.equal(error.error_description, 'no such scope')
  return true
})
await control('auth/next_once', { reply: 'reset' })
await assert.rejects(grant(oauth.ClientSecretPost(secret)), (error) => {
  assert.equal(error.cause.code, 'ECONNRESET')
  return true
})
await control('auth/next_once', { reply: 'normal', cut_off: true })
await assert.rejects(grant(oauth.ClientSecretPost(secret)))

for (const method of [openid.ClientSecretBasic, openid.ClientSecretPost]) {
  const configuration = new openid.Configuration(metadata, id, undefined, method(secret))
  openid.allowInsecureRequests(configuration)
  const token = await openid.clientCredentialsGrant(configuration, { scope: 'orders.read' })
  assert.equal((await api(token.access_token)).status, 200)
  assert.equal(token.expires_in, 3600)
}

console.log('oauth4webapi and openid-client: all checks passed')
