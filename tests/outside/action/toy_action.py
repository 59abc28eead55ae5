"""An action of another package: `action=count` prints how many slots the job would take."""

from flagscale.plan.prepare import Request, prepare


def count(request: Request) -> int:
    """Check the configuration and print the number of slots; a mistake is reported with exit code 2."""
    plan = prepare(request, run_id="count").plan
    print(f"{plan.world_size} slots on {len(plan.hosts)} host")
    return 0
