"""The labeling page: a small web application over a feedback store, without torch.

    app = create_app(FeedbackStore.open("feedback.db"), Settings())      # app.py

What a labeler sees is one page and one script (templates/label.html, static/label.js). The script
asks for the next tasks (tasks.py), keeps every judgment in the browser until the server has
acknowledged it, and the store keeps it exactly once. Who may ask is in access.py and guard.py;
what responses may show is in rendering.py; the administrator's page is admin.py; what a running
product sends is product.py.
"""
