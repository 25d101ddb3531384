// Procedures called by tedious: node suite.js HOST PORT USER PASSWORD. Ends with exit code 1 where something is not as it must be.
const assert = require('node:assert');
const { Connection, Request, TYPES } = require('tedious');
const [host, port, user, password] = process.argv.slice(2);

function connect(options, login) {
  return new Promise((resolve, reject) => {
    const c = new Connection({
      server: host,
      authentication: { type: 'default', options: { userName: user, password, ...login } },
      options: { port: Number(port), database: 'ASPState', trustServerCertificate: true, ...options },
    });
    c.on('error', () => {});
    c.connect((err) => (err ? reject(err) : resolve(c)));
  });
}

function run(c, text, parameters, how) {
  return new Promise((resolve, reject) => {
    const answer = { out: {}, rows: [] };
    const request = new Request(text, (err, count) => (err ? reject(err) : resolve({ ...answer, count })));
    for (const [name, type, value, output] of parameters || []) {
      if (output) request.addOutputParameter(name, type, null, type === TYPES.VarBinary ? { length: 7000 } : {});
      else request.addParameter(name, type, value);
    }
    request.on('returnValue', (name, value) => { answer.out[name] = value; });
    request.on('row', (columns) => answer.rows.push(columns.map((column) => column.value)));
    how.call(c, request);
  });
}

const call = (c, name, parameters) => run(c, name, parameters, c.callProcedure);
const cookie = (n) => ['lockCookie', TYPES.Int, n];
const minutes = (n) => ['timeout', TYPES.Int, n];
const pattern = (n) => Buffer.from(Array.from({ length: n }, (_, i) => (i * 7) % 256));

async function get(c, name, id) {
  const a = await call(c, name, [['id', TYPES.NVarChar, id], ['itemShort', TYPES.VarBinary, null, true], ['locked', TYPES.Bit, null, true],
    ['lockAge', TYPES.Int, null, true], ['lockCookie', TYPES.Int, null, true], ['actionFlags', TYPES.Int, null, true]]);
  return { ...a.out, item: a.rows.length ? a.rows[0][0] : a.out.itemShort };
}

async function visit(options) {
  const c = await connect(options);
  try {
    const { out } = await call(c, 'dbo.TempGetAppID', [['appName', TYPES.VarChar, '/LM/W3SVC/1/ROOT'], ['appId', TYPES.Int, null, true]]);
    assert.strictEqual(out.appId, 538231025);
    const id = Math.random().toString(36).slice(2).padEnd(24, 'x') + out.appId.toString(16).padStart(8, '0');
    const key = ['id', TYPES.NVarChar, id];
    assert.strictEqual((await get(c, 'dbo.TempGetStateItemExclusive3', id)).locked, null);
    const large = pattern(1 << 20);
    assert.strictEqual((await call(c, 'dbo.TempInsertStateItemLong', [key, ['itemLong', TYPES.VarBinary, large], minutes(20)])).count, 1);
    await assert.rejects(call(c, 'dbo.TempInsertStateItemShort', [key, ['itemShort', TYPES.VarBinary, pattern(5)], minutes(20)]), { number: 2627 });
    let s = await get(c, 'dbo.TempGetStateItemExclusive3', id);
    assert.deepStrictEqual([s.locked, s.lockAge, s.lockCookie, s.actionFlags], [false, 0, 2, 0]);
    assert.ok(large.equals(s.item), 'the large item is another one');
    assert.strictEqual((await get(c, 'dbo.TempGetStateItem3', id)).locked, true);
    const update = 'dbo.TempUpdateStateItemShortNullLong';
    const item = ['itemShort', TYPES.VarBinary, pattern(7000)];
    assert.strictEqual((await call(c, update, [key, item, minutes(20), cookie(1)])).count, 0);
    assert.strictEqual((await call(c, update, [key, item, minutes(20), cookie(2)])).count, 1);
    s = await get(c, 'dbo.TempGetStateItem3', id);
    assert.ok(s.locked === false && pattern(7000).equals(s.item), 'the small item is another one');
    assert.ok(s.lockAge >= 0 && s.lockAge <= 60, `the last lock is ${s.lockAge} s old`);
    assert.strictEqual((await run(c, 'EXEC dbo.TempResetTimeout @id', [key], c.execSql)).count, 1);
    await assert.rejects(run(c, 'SELECT * FROM ASPStateTempSessions', [], c.execSqlBatch), { number: 208 });
    await new Promise((resolve, reject) => c.reset((err) => (err ? reject(err) : resolve())));
    assert.strictEqual((await call(c, 'dbo.TempReleaseStateItemExclusive', [key, cookie(2)])).count, 1);
    assert.strictEqual((await call(c, 'dbo.TempRemoveStateItem', [key, cookie(2)])).count, 1);
    assert.strictEqual((await get(c, 'dbo.TempGetStateItem3', id)).locked, null);
  } finally {
    c.close();
  }
}

(async () => {
  await visit({ encrypt: false });
  await visit({ encrypt: true });
  await visit({ encrypt: true, packetSize: 512 });
  await visit({ encrypt: false, tdsVersion: '7_2', packetSize: 16384 });
  await assert.rejects(connect({ encrypt: true }, { password: 'wrong' }), /Login failed for user/);
  await assert.rejects(connect({ encrypt: false, database: 'master' }), /Cannot open database|Login failed/);
  console.log('passed');
})().catch((err) => { console.log(err); process.exit(1); });
