// What the in-box session-state client does, with System.Data.SqlClient: arguments are the connection string,
// without encryption and with, and what must be refused. Ends with exit code 1 and a message where something is not as it must be.
using System;
using System.Collections.Generic;
using System.Data;
using System.Data.SqlClient;
using System.Linq;

static class Suite {
    static SqlConnection connection;
    static string id;

    static void Want(string what, object got, object want) {
        if (!Equals(got, want)) throw new Exception(what + ": got " + (got ?? "null") + ", want " + (want ?? "null"));
    }

    static byte[] Pattern(int n) { return Enumerable.Range(0, n).Select(i => (byte)(i * 7)).ToArray(); }

    static SqlCommand Command(string name) {
        var command = new SqlCommand(name, connection) { CommandType = CommandType.StoredProcedure };
        if (id != null) command.Parameters.Add("@id", SqlDbType.NVarChar, 88).Value = id;
        return command;
    }

    static void Out(SqlCommand command, string name, SqlDbType type, int size = 0) {
        command.Parameters.Add(new SqlParameter(name, type, size) { Direction = ParameterDirection.Output, Value = DBNull.Value });
    }

    static int Change(string name, params SqlParameter[] parameters) {
        using (var command = Command(name)) {
            command.Parameters.AddRange(parameters);
            return command.ExecuteNonQuery();
        }
    }

    static SqlParameter Short(byte[] b) { return new SqlParameter("@itemShort", SqlDbType.VarBinary, 7000) { Value = b }; }
    static SqlParameter Long(byte[] b) { return new SqlParameter("@itemLong", SqlDbType.Image, b.Length) { Value = b }; }
    static SqlParameter Timeout(int n) { return new SqlParameter("@timeout", SqlDbType.Int) { Value = n }; }
    static SqlParameter Cookie(int n) { return new SqlParameter("@lockCookie", SqlDbType.Int) { Value = n }; }

    // Get returns what a Get tells, and the item.
    static string Get(string name, out byte[] item) {
        using (var command = Command(name)) {
            Out(command, "@itemShort", SqlDbType.VarBinary, 7000);
            Out(command, "@locked", SqlDbType.Bit);
            Out(command, "@lockAge", SqlDbType.Int);
            Out(command, "@lockCookie", SqlDbType.Int);
            Out(command, "@actionFlags", SqlDbType.Int);
            item = null;
            using (var reader = command.ExecuteReader()) {
                if (reader.Read()) item = (byte[])reader[0];
            }
            var p = command.Parameters;
            if (p["@locked"].Value == DBNull.Value) {
                Want("cookie of no session", p["@lockCookie"].Value, DBNull.Value);
                return "missing";
            }
            if (item == null) item = p["@itemShort"].Value as byte[];
            // The last lock's age is 0 only where this took the lock.
            var age = (int)p["@lockAge"].Value;
            var taken = name.Contains("Exclusive") && !(bool)p["@locked"].Value;
            return String.Format("locked {0}, age {1}, cookie {2}, flags {3}", (bool)p["@locked"].Value, taken || age < 0 || age > 60 ? age.ToString() : "young",
                (int)p["@lockCookie"].Value, (int)p["@actionFlags"].Value);
        }
    }

    static void Check(string name, string want, byte[] wantItem) {
        byte[] item;
        Want(name, Get(name, out item), want);
        Want("item of " + name, item == null ? null : Convert.ToBase64String(item), wantItem == null ? null : Convert.ToBase64String(wantItem));
    }

    static void Visit(string text) {
        using (connection = new SqlConnection(text)) {
            connection.Open();
            id = null;
            using (var probe = new SqlCommand("Select name from sysobjects where type = 'P' and name = 'TempGetVersion'", connection))
                Want("probe", probe.ExecuteScalar(), "TempGetVersion");
            using (var command = Command("dbo.GetMajorVersion")) {
                Out(command, "@@ver", SqlDbType.Int);
                command.ExecuteNonQuery();
                Want("version", (int)command.Parameters["@@ver"].Value >= 8, true);
            }
            using (var command = Command("dbo.TempGetAppID")) {
                command.Parameters.Add("@appName", SqlDbType.VarChar, 280).Value = "/LM/W3SVC/1/ROOT";
                Out(command, "@appId", SqlDbType.Int);
                command.ExecuteNonQuery();
                Want("AppID", command.Parameters["@appId"].Value, 538231025);
                id = Guid.NewGuid().ToString("N").Substring(0, 24) + ((int)command.Parameters["@appId"].Value).ToString("x8");
            }
            byte[] small = Pattern(7000), larger = Pattern(7001), large = Pattern(1 << 20);
            Check("dbo.TempGetStateItemExclusive3", "missing", null);
            Want("insert", Change("dbo.TempInsertUninitializedItem", Short(Pattern(6)), Timeout(20)), 1);
            try {
                Change("dbo.TempInsertStateItemLong", Long(large), Timeout(20));
                throw new Exception("an insert over a session succeeded");
            } catch (SqlException e) {
                Want("number", e.Number, 2627);
            }
            Check("dbo.TempGetStateItemExclusive3", "locked False, age 0, cookie 2, flags 1", Pattern(6));
            Check("dbo.TempGetStateItem3", "locked True, age young, cookie 2, flags 0", null);
            Want("update", Change("dbo.TempUpdateStateItemShort", Short(small), Timeout(20), Cookie(2)), 1);
            Check("dbo.TempGetStateItem3", "locked False, age young, cookie 2, flags 0", small);
            Want("update", Change("dbo.TempUpdateStateItemLongNullShort", Long(larger), Timeout(20), Cookie(2)), 1);
            Check("dbo.TempGetStateItem3", "locked False, age young, cookie 2, flags 0", larger);
            Want("update, wrong cookie", Change("dbo.TempUpdateStateItemLong", Long(large), Timeout(20), Cookie(1)), 0);
            Want("update", Change("dbo.TempUpdateStateItemLong", Long(large), Timeout(20), Cookie(2)), 1);
            Check("dbo.TempGetStateItemExclusive3", "locked False, age 0, cookie 3, flags 0", large);
            Want("release", Change("dbo.TempReleaseStateItemExclusive", Cookie(3)), 1);
            Want("update", Change("dbo.TempUpdateStateItemShortNullLong", Short(Pattern(1)), Timeout(20), Cookie(3)), 1);
            Check("dbo.TempGetStateItem3", "locked False, age young, cookie 3, flags 0", Pattern(1));
            Want("reset timeout", Change("dbo.TempResetTimeout"), 1);
            Want("remove, wrong cookie", Change("dbo.TempRemoveStateItem", Cookie(2)), 0);
            Want("remove", Change("dbo.TempRemoveStateItem", Cookie(3)), 1);
            Check("dbo.TempGetStateItem3", "missing", null);
            id = null;
            Change("DeleteExpiredSessions");
            try {
                using (var command = new SqlCommand("SELECT * FROM ASPStateTempSessions", connection)) command.ExecuteScalar();
                throw new Exception("a table was read");
            } catch (SqlException e) {
                Want("number", e.Number, 208);
            }
            Want("state after an error", connection.State, ConnectionState.Open);
        }
    }

    static void Refused(string text, int number) {
        try {
            using (var c = new SqlConnection(text)) c.Open();
            throw new Exception("a login was not refused");
        } catch (SqlException e) {
            Want("number of a refused login", e.Number, number);
        }
    }

    static int Main(string[] args) {
        try {
            for (var again = 0; again < 3; again++) Visit(args[0]); // the pool gives the same connection again
            SqlConnection.ClearAllPools();
            Visit(args[0]);
            if (args.Length > 3) Visit(args[3]);
            Refused(args[1], 18456);
            Refused(args[2], 4060);
            Console.WriteLine("passed");
            return 0;
        } catch (Exception e) {
            Console.WriteLine(e);
            return 1;
        }
    }
}
