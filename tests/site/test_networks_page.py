"""The page *In other people's networks*: what the record holds stands there, and every "no" leads to its reason."""

import html
import re

import attn_lib
from book.tools.networks import FILE, NO, USES, explanation, parted
from book.tools.record import load


def test_every_row_stands_there_and_every_no_leads_to_its_reason(site):
    page = (site / "book" / "networks.html").read_text(encoding="utf-8")
    rows = load(FILE)["rows"]
    tables = re.findall(r'<h2 id="[\w-]+">([^<]+)</h2><div class="atlas-scroll"><table class="networks-table">(.*?)'
                        r"</table>", page, re.DOTALL)
    assert [name for name, _ in tables] == list(dict.fromkeys(row["network"] for row in rows))
    reasons = dict(re.findall(r'<li id="reason-(\d+)" value="\d+">(.*?)</li>', page, re.DOTALL))
    for name, table in tables:
        shown = re.findall(r"<tr><th scope=row>([^<]+)</th>(.*?)</tr>", table, re.DOTALL)
        of_network = [row for row in rows if row["network"] == name]
        heads = [attn_lib.entry(row["module"]).name if row["module"] else "nothing" for row in of_network]
        assert [html.unescape(head) for head, _ in shown] == heads
        for row, (_, cells) in zip(of_network, shown, strict=True):
            found = re.findall(r"<td[^>]*data-v=\"(\w+)\">(.*?)</td>", cells)
            if "refused" not in row:
                assert [verdict for verdict, _ in found] == [
                    parted(row["cells"].get(use, "none"))[0] for use in USES]
            whys = [row.get("refused")] if "refused" in row else [parted(c)[1] for c in row["cells"].values()
                                                                  if parted(c)[0] == NO]
            links = [re.search(r'href="#reason-(\d+)"', text).group(1) for verdict, text in found if verdict == NO]
            for why, number in zip(whys, links, strict=True):
                assert explanation(why).split("`")[0] in reasons[number].replace("&#x27;", "'")
