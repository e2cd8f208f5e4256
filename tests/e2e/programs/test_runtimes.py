"""Node.js and a JVM: their compilers, collectors and threads, and a connection that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.servers import Served

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

NODE = """
const http = require("http"), crypto = require("crypto"), {Worker} = require("worker_threads");
const worker = new Worker(`
    const {parentPort} = require("worker_threads");
    parentPort.on("message", n => {
        let sum = 0;
        for (let i = 0; i < 1000; i++)
            sum += i * n;
        parentPort.postMessage(sum);
    });
`, {eval: true});
const kept = [];
let count = 0, ticks = 0;
setInterval(() => ticks++, 5);
http.createServer((request, response) => {
    const now = ticks;
    worker.once("message", sum => crypto.pbkdf2("password", "salt", 10, 32, "sha256", (error, key) => {
        count++;
        kept.push({count, text: "x".repeat(1000)});
        if (kept.length > 5000) kept.shift();
        const right = sum === 499500 * count && kept[kept.length - 1].count === count && !error;
        setTimeout(() => response.end(`${count} ${right && ticks >= now} ${key.toString("hex").length}`), 1);
    }));
    worker.postMessage(count + 1);
}).listen(parseInt(process.argv[2]), "127.0.0.1");
"""

JAVA = """
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.*;
import java.util.*;

class Server {
    static long count = 0;
    static final Map<Long, byte[]> kept = new LinkedHashMap<>();

    public static void main(String[] words) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(words[0])), 0);
        server.setExecutor(Executors.newFixedThreadPool(2));
        server.createContext("/", exchange -> {
            byte[] body;
            try {
                synchronized (kept) {
                    long n = ++count;
                    kept.put(n, new byte[20000]);
                    kept.remove(n - 500);
                    List<Future<Long>> sums = new ArrayList<>();
                    for (int part = 0; part < 4; part++)
                        sums.add(pool.submit(() -> {
                            long sum = 0;
                            for (int i = 0; i < 1000; i++)
                                sum += i * n;
                            return sum;
                        }));
                    boolean right = true;
                    for (Future<Long> sum : sums)
                        right &= sum.get() == 499500 * n;
                    right &= kept.size() == Math.min(n, 500);
                    body = (n + " " + right + " 64").getBytes();
                }
            } catch (Exception error) {
                body = ("0 " + error).getBytes();
            }
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
"""

CLIENT = """
import http.client
words = {
    "node": ("server.js", ["node", "--max-old-space-size=64", "server.js", str(port)]),
    "java": ("Server.java", ["java", "-Xmx64m", "Server.java", str(port)]),
}
name, command = words[sys.argv[1]]
pathlib.Path(name).write_text(SOURCES[sys.argv[1]])
served(*command)
client = http.client.HTTPConnection("127.0.0.1", port)
client.sock = connected("127.0.0.1", port)
for number in range(1, 10**9):
    client.request("GET", "/")
    answer = client.getresponse().read().decode()
    assert answer == f"{number} true 64", answer
    acknowledge(number)
"""


SOURCES = {"node": NODE, "java": JAVA}


@pytest.mark.parametrize("runtime", ["node", "java"])
def test_a_server_with_a_client(tmp_path: Path, runtime: str) -> None:
    with Served(tmp_path, f"SOURCES = {SOURCES}\n{CLIENT}", runtime) as served:
        for number in range(2):
            served.cycle(f"{number}.image")
