package main

// partitioning is the part of the capacity page that nothing in a run changes.
const partitioning = `## When to partition

Not before one PostgreSQL is too small, or one is too much to lose at once: the tables say where that is. Partitioning is ASP.NET's own: the web server asks a class of yours
where a session is, and gets the connection string of a group of aspstate servers with a database of its own. Nothing is shared between groups, so ten take ten times the load, and a group that fails takes
its share of the users with it and no others.

    <sessionState mode="StateServer" partitionResolverType="Shop.SessionPartitions, Shop" />

` + "```csharp" + `
using System.Web;

namespace Shop
{
    public class SessionPartitions : IPartitionResolver
    {
        // The same list, in the same order, on every web server.
        static readonly string[] groups =
        {
            "tcpip=state-a.example:42424",
            "tcpip=state-b.example:42424",
            "tcpip=state-c.example:42424",
        };

        public void Initialize() { }

        public string ResolvePartition(object key)
        {
            // FNV-1a. Not string.GetHashCode: it differs between processes of 32 and 64 bits, and between versions of .NET.
            uint hash = 2166136261;
            foreach (char c in (string)key) { hash = unchecked((hash ^ c) * 16777619); }
            return groups[hash % (uint)groups.Length];
        }
    }
}
` + "```" + `

* ` + "`stateConnectionString`" + ` is ignored where there is a resolver. The key is the session ID, which is made before the first request for it and does not change.
* ` + "`state-a.example`" + ` stands for all servers of a group: a name behind a load balancer, or an address that moves. They share one database, so it does not matter which of them answers.
* All web servers of the farm must have the same class and the same list. One with another list looks for sessions where they are not, and logs users out.
* **Another number of groups** sends most IDs to another group: their sessions are not found there, and those users are logged out. IDs in the browsers stay valid. Either change it when that does no harm, or
  have more groups in the list than machines from the start: names of 16 groups, say, of which several are databases on one PostgreSQL at first. Moving such a group to another machine
  (` + "`aspstate switch`" + `, see [moving](moving.md)) changes no hash and logs nobody out.
* ` + "`mode=\"SQLServer\"`" + ` has the same attribute; the class then returns connection strings of ` + "`tds.listen`" + `.

The class is an example that was not run against IIS here.

## When to take a distributed engine

An engine that spreads one database over many machines (Citus, YugabyteDB, CockroachDB) does for you what the resolver does, and moves sessions by itself when machines are added. It does not make a page cheaper: a write
is acknowledged when a majority of copies has it, which adds a trip over the network to each of the two commits of a page, and takes more processor time. Take one

* where groups are added often, or are too many to look after one by one: more than ten or twenty;
* where a site may be lost without losing an acknowledged write, and without an operator's hand. A synchronous standby in each group gives the first without the second;
* where the company runs one anyway.

Otherwise groups of plain PostgreSQL are simpler, faster and easier to mend: sessions need no query over several groups. None of the three was measured here, nor tried; the package comment of
[backends/postgres](../backends/postgres/doc.go) says what is known. Measure before you decide: the load generator (` + "`bench load`" + `) speaks to any server.
`
